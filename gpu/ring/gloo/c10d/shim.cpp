// What gpu/ring/gloo calls of libtorch's c10d: a store for the ranks to meet at, a
// ProcessGroupGloo, and three collectives over host memory. `autoglm libtorch fit`
// compiles it to libautoglm-gloo.so beside the binary:
//
//	g++ -std=c++20 -shared -fPIC -DUSE_C10D_GLOO -I include … shim.cpp -L lib -ltorch_cpu -lc10
//
// gloo's own headers are not in PyPI's wheels; Debian's libgloo-dev has some that
// fit. Only types behind pointers are taken from them.
#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <vector>

namespace {

struct Group {
	c10::intrusive_ptr<c10d::TCPStore> store;
	c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
	int rank, world;
};

// guarded turns an exception into text; nothing may be thrown through C.
template <typename F>
int guarded(char *err, int room, F f) {
	try {
		f();
		return 0;
	} catch (const std::exception &e) {
		std::snprintf(err, room, "%s", e.what());
	} catch (...) {
		std::snprintf(err, room, "an exception of no known type");
	}
	return 1;
}

at::Tensor over(void *p, int64_t n, at::ScalarType type) { return at::from_blob(p, {n}, at::TensorOptions().dtype(type)); }

}  // namespace

extern "C" {

// store opens the store (as master, on a free port), or reaches it.
int autoglm_gloo_store(Group **out, const char *host, int *port, int master, int rank, int world, int timeout_ms, char *err, int room) {
	return guarded(err, room, [&] {
		auto g = std::make_unique<Group>();
		g->rank = rank, g->world = world;
		c10d::TCPStoreOptions o;
		o.port = static_cast<uint16_t>(*port);
		o.isServer = master != 0;
		o.numWorkers = world;
		o.waitWorkers = false;
		o.timeout = std::chrono::milliseconds(timeout_ms);
		g->store = c10::make_intrusive<c10d::TCPStore>(std::string(host), o);
		*port = g->store->getPort();
		*out = g.release();
	});
}

// join connects all ranks; address is this process's own.
int autoglm_gloo_join(Group *g, const char *address, int timeout_ms, char *err, int room) {
	return guarded(err, room, [&] {
		auto o = c10d::ProcessGroupGloo::Options::create(std::chrono::milliseconds(timeout_ms));
		o->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address));
		g->gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(g->store, g->rank, g->world, o);
	});
}

int autoglm_gloo_sum(Group *g, float *p, int64_t n, char *err, int room) {
	return guarded(err, room, [&] {
		std::vector<at::Tensor> t{over(p, n, at::kFloat)};
		g->gloo->allreduce(t)->wait();
	});
}

int autoglm_gloo_broadcast(Group *g, void *p, int64_t bytes, int root, char *err, int room) {
	return guarded(err, room, [&] {
		std::vector<at::Tensor> t{over(p, bytes, at::kByte)};
		c10d::BroadcastOptions o;
		o.rootRank = root;
		g->gloo->broadcast(t, o)->wait();
	});
}

// gather fills the buffer: rank r's part is its rth chunk, the last ones shorter or
// empty.
int autoglm_gloo_gather(Group *g, char *p, int64_t bytes, int64_t chunk, char *err, int room) {
	return guarded(err, room, [&] {
		auto length = [&](int r) { return std::max<int64_t>(0, std::min(chunk, bytes - r * chunk)); };
		// Gloo knows only chunks of one length.
		auto mine = at::zeros({chunk}, at::kByte);
		std::memcpy(mine.data_ptr(), p + std::min(bytes, g->rank * chunk), length(g->rank));
		std::vector<at::Tensor> in{mine};
		std::vector<std::vector<at::Tensor>> out(1);
		for (int r = 0; r < g->world; r++)
			out[0].push_back(at::empty({chunk}, at::kByte));
		g->gloo->allgather(out, in)->wait();
		for (int r = 0; r < g->world; r++)
			if (r != g->rank)
				std::memcpy(p + std::min(bytes, r * chunk), out[0][r].data_ptr(), length(r));
	});
}

void autoglm_gloo_free(Group *g) { delete g; }
}
