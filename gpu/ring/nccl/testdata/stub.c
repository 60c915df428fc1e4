// A stand-in for libnccl.so.2 and libcuda.so.1 that sums for real, between
// processes, with host memory for the GPU's: what tests of the bindings and of faults
// run on.
//
//	gcc -O2 -shared -fPIC -pthread -o stub.so stub.c
//
// A communicator is a memfd that rank 0's process holds and the others open through
// /proc: nothing is left behind. Its ranks meet at counters, put pieces into slots,
// and each sums all slots in rank order, in float, rounding once. A stream is a
// thread with a queue.
//
// AUTOGLM_STUB_NCCL="WHAT:N" or "WHAT:N@RANK" makes something go wrong at the Nth
// collective of the process (of the one with that RANK), from 1 on:
//
//	fail    the call returns an internal error
//	hang    it never ends, until the communicator is aborted
//	async   the same, and the communicator reports a system error
//	stuck   the call itself does not return until then
//	abort   the process ends by abort()
//	deaf    it never ends, and ncclCommAbort does not return either
//	init-fail, init-hang   (N is the number of the communicator)
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ranks_most = 64, slot_bytes = 1 << 20 };
enum { success = 0, system_error = 2, internal_error = 3, invalid_argument = 4, invalid_usage = 5, in_progress = 7 };
enum { f16 = 6, f32 = 7, bf16 = 9 };

typedef struct { char b[128]; } unique_id;

// id is what a unique_id holds. All of it is checked, so that one that was passed
// wrongly is found.
typedef struct {
	char magic[8];
	int64_t pid, fd;
	unsigned char pattern[104];
} id;

typedef struct { _Alignas(64) _Atomic uint64_t at; } counter;

typedef struct {
	counter here[ranks_most];
	_Atomic int attached[ranks_most], finalized[ranks_most];
	_Alignas(4096) unsigned char slot[ranks_most][slot_bytes];
} board;

typedef struct comm {
	int rank, world;
	int fd; // of the board, in the process that made it
	board *b;
	uint64_t step;
	_Atomic int aborted, error, pending, hangs, finalizing, deaf;
} comm;

typedef struct task {
	struct task *next;
	int what;
	const unsigned char *from;
	unsigned char *to;
	size_t count;
	int dtype, root;
	comm *c;
} task;

typedef struct {
	pthread_t thread;
	pthread_mutex_t mu;
	pthread_cond_t more;
	task *first, **last;
	int ended;
	_Atomic int pending;
} stream;

static size_t size_of(int dtype) { return dtype == f32 ? 4 : dtype == f16 || dtype == bf16 ? 2 : 1; }

static float get(const void *p, int dtype) {
	if (dtype == f32) {
		float x;
		memcpy(&x, p, 4);
		return x;
	}
	if (dtype == f16) {
		_Float16 x;
		memcpy(&x, p, 2);
		return (float)x;
	}
	uint16_t h;
	memcpy(&h, p, 2);
	uint32_t u = (uint32_t)h << 16;
	float x;
	memcpy(&x, &u, 4);
	return x;
}

static void put(void *p, int dtype, float x) {
	if (dtype == f32) {
		memcpy(p, &x, 4);
	} else if (dtype == f16) {
		_Float16 h = (_Float16)x;
		memcpy(p, &h, 2);
	} else {
		uint32_t u;
		memcpy(&u, &x, 4);
		uint16_t h = (u + 0x7fff + (u >> 16 & 1)) >> 16;
		memcpy(p, &h, 2);
	}
}

// meet waits for all ranks; false when the communicator was aborted.
static int meet(comm *c) {
	c->step++;
	atomic_store(&c->b->here[c->rank].at, c->step);
	for (int r = 0; r < c->world; r++) {
		for (unsigned n = 0; atomic_load(&c->b->here[r].at) < c->step; n++) {
			if (atomic_load(&c->aborted))
				return 0;
			if (n < 200)
				sched_yield();
			else
				usleep(50);
		}
	}
	return 1;
}

// What a task is.
enum { copy = 1, all_reduce, reduce, broadcast };

static void collective(task *t) {
	comm *c = t->c;
	size_t size = size_of(t->dtype), step = slot_bytes / size;
	if (c->hangs) {
		while (!atomic_load(&c->aborted))
			usleep(100);
		return;
	}
	for (size_t lo = 0; lo < t->count; lo += step) {
		size_t n = t->count - lo < step ? t->count - lo : step;
		if (t->what != broadcast || c->rank == t->root)
			memcpy(c->b->slot[c->rank], t->from + lo * size, n * size);
		if (!meet(c))
			return;
		unsigned char *to = t->to + lo * size;
		if (t->what == broadcast) {
			if (c->rank != t->root)
				memcpy(to, c->b->slot[t->root], n * size);
		} else if (t->what == all_reduce || c->rank == t->root) {
			for (size_t i = 0; i < n; i++) {
				float sum = get(c->b->slot[0] + i * size, t->dtype);
				for (int r = 1; r < c->world; r++)
					sum += get(c->b->slot[r] + i * size, t->dtype);
				put(to + i * size, t->dtype, sum);
			}
		}
		if (!meet(c))
			return;
	}
}

static void *work(void *arg) {
	stream *s = arg;
	for (;;) {
		pthread_mutex_lock(&s->mu);
		while (!s->first && !s->ended)
			pthread_cond_wait(&s->more, &s->mu);
		task *t = s->first;
		if (!t) {
			pthread_mutex_unlock(&s->mu);
			return NULL;
		}
		s->first = t->next;
		if (!s->first)
			s->last = &s->first;
		pthread_mutex_unlock(&s->mu);
		if (t->what == copy)
			memcpy(t->to, t->from, t->count);
		else {
			collective(t);
			atomic_fetch_sub(&t->c->pending, 1);
		}
		free(t);
		atomic_fetch_sub(&s->pending, 1);
	}
}

static void enqueue(stream *s, task t) {
	task *p = malloc(sizeof *p);
	*p = t;
	p->next = NULL;
	if (t.c)
		atomic_fetch_add(&t.c->pending, 1);
	atomic_fetch_add(&s->pending, 1);
	pthread_mutex_lock(&s->mu);
	*s->last = p;
	s->last = &p->next;
	pthread_cond_signal(&s->more);
	pthread_mutex_unlock(&s->mu);
}

// The driver.

int cuInit(unsigned flags) { return flags ? 1 : getenv("AUTOGLM_STUB_NO_GPU") ? 100 : 0; }
int cuDeviceGetCount(int *n) { return *n = 8, 0; }
int cuDeviceGet(int *d, int ordinal) { return *d = ordinal, ordinal < 0 || ordinal > 7 ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void **ctx, int d) { return *ctx = (void *)(intptr_t)(d + 1), 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { return (void)d, 0; }
static _Thread_local void *current;
int cuCtxSetCurrent(void *ctx) { return current = ctx, 0; }

int cuStreamCreate(stream **out, unsigned flags) {
	(void)flags;
	if (!current)
		return 201;
	stream *s = calloc(1, sizeof *s);
	pthread_mutex_init(&s->mu, NULL);
	pthread_cond_init(&s->more, NULL);
	s->last = &s->first;
	*out = s;
	return pthread_create(&s->thread, NULL, work, s) ? 2 : 0;
}

int cuStreamDestroy_v2(stream *s) {
	pthread_mutex_lock(&s->mu);
	s->ended = 1;
	pthread_cond_signal(&s->more);
	pthread_mutex_unlock(&s->mu);
	pthread_join(s->thread, NULL);
	free(s);
	return 0;
}

int cuStreamQuery(stream *s) { return atomic_load(&s->pending) ? 600 : 0; }
int cuStreamWaitEvent(stream *s, void *e, unsigned flags) { return (void)s, (void)flags, e ? 0 : 400; }
int cuEventCreate(void **e, unsigned flags) { return (void)flags, *e = malloc(1), 0; }
int cuEventDestroy_v2(void *e) { return free(e), 0; }
int cuEventRecord(void *e, void *s) { return (void)s, e ? 0 : 400; }
int cuMemAlloc_v2(void **p, size_t n) { return (*p = malloc(n)) ? 0 : 2; }
int cuMemFree_v2(void *p) { return free(p), 0; }
int cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t n, stream *s) {
	enqueue(s, (task){.what = copy, .from = from, .to = to, .count = n});
	return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t n, stream *s) { return cuMemcpyHtoDAsync_v2(to, from, n, s); }
int cuGetErrorString(int code, const char **text) {
	*text = code == 2 ? "out of memory" : code == 100 ? "no CUDA-capable device is detected" : code == 201 ? "invalid device context" : "some error";
	return 0;
}

// NCCL.

static _Atomic int operations, communicators;

// planned tells whether that goes wrong now.
static int planned(const char *what, int n, int rank) {
	const char *plan = getenv("AUTOGLM_STUB_NCCL");
	size_t len = strlen(what);
	if (!plan || strncmp(plan, what, len) || plan[len] != ':')
		return 0;
	int at = 0, of = -1;
	sscanf(plan + len + 1, "%d@%d", &at, &of);
	const char *began = getenv("RANK"); // ranks get other numbers when others are lost
	return at == n && (of < 0 || of == (began ? atoi(began) : rank));
}

int ncclGetVersion(int *v) { return *v = getenv("AUTOGLM_STUB_OLD") ? 21000 : 22703, 0; }

int ncclGetUniqueId(unique_id *out) {
	int fd = memfd_create("nccl stub", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, sizeof(board)))
		return system_error;
	id i = {.magic = "NCCLSTUB", .pid = getpid(), .fd = fd};
	for (unsigned k = 0; k < sizeof i.pattern; k++)
		i.pattern[k] = k * 7 + 1;
	_Static_assert(sizeof i == sizeof *out, "128 bytes");
	memcpy(out, &i, sizeof i);
	return success;
}

typedef struct {
	size_t size;
	unsigned magic, version;
	int blocking;
} config;

int ncclCommInitRankConfig(comm **out, int world, unique_id u, int rank, const config *cfg) {
	id i;
	memcpy(&i, &u, sizeof i);
	if (memcmp(i.magic, "NCCLSTUB", 8) || rank < 0 || rank >= world || world > ranks_most || !current)
		return invalid_argument;
	for (unsigned k = 0; k < sizeof i.pattern; k++)
		if (i.pattern[k] != (unsigned char)(k * 7 + 1))
			return invalid_argument;
	if (cfg->size < 24 || cfg->magic != 0xcafebeef || cfg->version < 21400 || cfg->blocking != 0)
		return invalid_argument;
	int n = atomic_fetch_add(&communicators, 1) + 1;
	if (planned("init-fail", n, rank))
		return internal_error;
	char path[64];
	snprintf(path, sizeof path, "/proc/%lld/fd/%lld", (long long)i.pid, (long long)i.fd);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return system_error;
	comm *c = calloc(1, sizeof *c);
	c->rank = rank;
	c->world = world;
	c->fd = rank == 0 ? (int)i.fd : -1;
	c->b = mmap(NULL, sizeof(board), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (c->b == MAP_FAILED)
		return system_error;
	*out = c;
	if (planned("init-hang", n, rank))
		return in_progress;
	if (atomic_exchange(&c->b->attached[rank], 1))
		return invalid_usage;
	return in_progress;
}

int ncclCommGetAsyncError(comm *c, int *state) {
	*state = atomic_load(&c->error);
	for (int r = 0; !*state && r < c->world; r++)
		if (!atomic_load(&c->b->attached[r]))
			*state = in_progress;
	if (!*state && c->finalizing && atomic_load(&c->pending))
		*state = in_progress;
	return success;
}

int ncclCommFinalize(comm *c) {
	c->finalizing = 1;
	return in_progress;
}

int ncclCommDestroy(comm *c) {
	if (c->fd >= 0)
		close(c->fd);
	munmap(c->b, sizeof(board));
	free(c);
	return success;
}

int ncclCommAbort(comm *c) {
	while (c->deaf)
		pause();
	atomic_store(&c->aborted, 1);
	while (atomic_load(&c->pending))
		usleep(50);
	return ncclCommDestroy(c);
}

static _Thread_local int grouped;
int ncclGroupStart(void) { return grouped++, success; }
int ncclGroupEnd(void) { return grouped-- > 0 ? success : invalid_usage; }

// begin counts a collective and makes go wrong what is planned.
static int begin(comm *c, int dtype, int op) {
	if ((dtype != f32 && dtype != f16 && dtype != bf16) || op != 0)
		return invalid_argument;
	int n = atomic_fetch_add(&operations, 1) + 1;
	if (planned("fail", n, c->rank))
		return internal_error;
	if (planned("abort", n, c->rank)) {
		signal(SIGABRT, SIG_DFL); // no run-time tells its story
		abort();
	}
	if (planned("deaf", n, c->rank))
		c->deaf = c->hangs = 1;
	if (planned("hang", n, c->rank))
		c->hangs = 1;
	if (planned("async", n, c->rank)) {
		c->hangs = 1;
		atomic_store(&c->error, system_error);
	}
	if (planned("stuck", n, c->rank)) {
		atomic_fetch_add(&c->pending, 1);
		while (!atomic_load(&c->aborted))
			usleep(100);
		atomic_fetch_sub(&c->pending, 1);
		return internal_error;
	}
	return success;
}

int ncclAllReduce(const void *from, void *to, size_t count, int dtype, int op, comm *c, stream *s) {
	int code = begin(c, dtype, op);
	if (!code)
		enqueue(s, (task){.what = all_reduce, .from = from, .to = to, .count = count, .dtype = dtype, .c = c});
	return code;
}

int ncclReduce(const void *from, void *to, size_t count, int dtype, int op, int root, comm *c, stream *s) {
	int code = grouped ? begin(c, dtype, op) : invalid_usage;
	if (!code)
		enqueue(s, (task){.what = reduce, .from = from, .to = to, .count = count, .dtype = dtype, .root = root, .c = c});
	return code;
}

int ncclReduceScatter(const unsigned char *from, void *to, size_t count, int dtype, int op, comm *c, stream *s) {
	int code = begin(c, dtype, op);
	size_t bytes = count * size_of(dtype);
	for (int r = 0; !code && r < c->world; r++)
		enqueue(s, (task){.what = reduce, .from = from + r * bytes, .to = to, .count = count, .dtype = dtype, .root = r, .c = c});
	return code;
}

int ncclAllGather(const void *from, unsigned char *to, size_t count, int dtype, comm *c, stream *s) {
	int code = begin(c, dtype, 0);
	size_t bytes = count * size_of(dtype);
	if (!code && (const void *)(to + c->rank * bytes) != from)
		enqueue(s, (task){.what = copy, .from = from, .to = to + c->rank * bytes, .count = bytes});
	for (int r = 0; !code && r < c->world; r++)
		enqueue(s, (task){.what = broadcast, .from = to + r * bytes, .to = to + r * bytes, .count = count, .dtype = dtype, .root = r, .c = c});
	return code;
}

int ncclBroadcast(const void *from, void *to, size_t count, int dtype, int root, comm *c, stream *s) {
	int code = begin(c, dtype, 0);
	if (!code)
		enqueue(s, (task){.what = broadcast, .from = from, .to = to, .count = count, .dtype = dtype, .root = root, .c = c});
	return code;
}

const char *ncclGetErrorString(int code) {
	switch (code) {
	case system_error: return "unhandled system error";
	case internal_error: return "internal error";
	case invalid_argument: return "invalid argument";
	case invalid_usage: return "invalid usage";
	}
	return "some error";
}
const char *ncclGetLastError(comm *c) { return (void)c, ""; }
