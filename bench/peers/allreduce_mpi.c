// The peer of bench/allreduce: MPI_Allreduce in place, float sums. Rank 0 prints a
// line "bytes seconds" for each size of the arguments, the median of the blocks.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b) {
	double x = *(const double *)a, y = *(const double *)b;
	return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
	MPI_Init(&argc, &argv);
	int rank;
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	if (argc < 3) {
		fprintf(stderr, "usage: allreduce_mpi SECONDS BYTES...\n");
		MPI_Abort(MPI_COMM_WORLD, 2);
	}
	double budget = atof(argv[1]);
	for (int a = 2; a < argc; a++) {
		long bytes = atol(argv[a]);
		float *buf = malloc(bytes);
		if (!buf) {
			fprintf(stderr, "no memory for %ld bytes\n", bytes);
			MPI_Abort(MPI_COMM_WORLD, 1);
		}
		memset(buf, 0, bytes);
		int count = bytes / sizeof(float);
		double began = MPI_Wtime();
		int warm = 0;
		double spent = 0;
		while (warm < 3 || spent < budget / 5) {
			MPI_Allreduce(MPI_IN_PLACE, buf, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
			warm++;
			spent = MPI_Wtime() - began;
			MPI_Bcast(&spent, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
		}
		// Blocks of about a fifteenth of the time.
		int block = (int)(budget / 15 / (spent / warm));
		if (block < 1)
			block = 1;
		MPI_Bcast(&block, 1, MPI_INT, 0, MPI_COMM_WORLD);
		double times[15];
		int n = 0;
		began = MPI_Wtime();
		for (; n < 15; n++) {
			MPI_Barrier(MPI_COMM_WORLD);
			double t = MPI_Wtime();
			for (int i = 0; i < block; i++)
				MPI_Allreduce(MPI_IN_PLACE, buf, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
			times[n] = (MPI_Wtime() - t) / block;
			int stop = n >= 4 && MPI_Wtime() - began > 2 * budget;
			MPI_Bcast(&stop, 1, MPI_INT, 0, MPI_COMM_WORLD);
			if (stop) {
				n++;
				break;
			}
		}
		qsort(times, n, sizeof(double), by_value);
		if (rank == 0) {
			printf("%ld %.9g\n", bytes, times[n / 2]);
			fflush(stdout);
		}
		free(buf);
	}
	MPI_Finalize();
	return 0;
}
