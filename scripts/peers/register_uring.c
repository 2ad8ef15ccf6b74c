/*
 * Registers and unregisters one buffer with an io_uring, and does nothing else.
 * Usage: register_uring SIZE_BYTES SECONDS
 *
 * IORING_REGISTER_BUFFERS and IORING_UNREGISTER_BUFFERS by themselves, without liburing; see
 * io_uring_register(2). The peer of workloads/load/register_uring.py at depth 1.
 */
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "churn.h"

#define BUFFER_BYTES (1UL << 30) /* 6.1 and 6.12 refuse a longer iovec */
#define BUFFERS 1024

static int ring;
static struct iovec buffers[BUFFERS];
static unsigned int count;

static int64_t acquire(const struct churn *churn)
{
	int64_t start = now_ns(CLOCK_MONOTONIC), elapsed;
	long result = syscall(__NR_io_uring_register, ring, IORING_REGISTER_BUFFERS, buffers,
			      count);

	elapsed = now_ns(CLOCK_MONOTONIC) - start;
	if (result)
		die("IORING_REGISTER_BUFFERS", errno);
	return elapsed;
}

static int64_t release(const struct churn *churn)
{
	int64_t start = now_ns(CLOCK_MONOTONIC), elapsed;
	long result = syscall(__NR_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, NULL, 0);

	elapsed = now_ns(CLOCK_MONOTONIC) - start;
	if (result)
		die("IORING_UNREGISTER_BUFFERS", errno);
	return elapsed;
}

int main(int argc, char **argv)
{
	struct io_uring_params params = {0};
	struct churn churn;

	if (argc != 3) {
		fprintf(stderr, "usage: register_uring SIZE_BYTES SECONDS\n");
		return 2;
	}
	churn = prepare(argv[1], argv[2]);
	ring = syscall(__NR_io_uring_setup, 1, &params);
	if (ring < 0)
		die("io_uring_setup", errno);
	for (size_t done = 0; done < churn.size_bytes; done += BUFFER_BYTES) {
		size_t left = churn.size_bytes - done;

		if (count == BUFFERS)
			die("SIZE_BYTES", E2BIG);
		buffers[count].iov_base = (char *)churn.address + done;
		buffers[count++].iov_len = left < BUFFER_BYTES ? left : BUFFER_BYTES;
	}
	return run(&churn, acquire, release);
}
