/*
 * What the peers have in common: one region of anonymous base pages, registered and deregistered
 * over and over, each call timed by itself.
 *
 * The memory is that of workloads/memory/anon.py: private, MADV_NOHUGEPAGE, every page written
 * once beforehand, not mlocked, one page behind a boundary of 2 MiB.
 */
#ifndef PINSTORM_PEERS_CHURN_H
#define PINSTORM_PEERS_CHURN_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define PAGE_BYTES 4096UL
#define HUGE_BYTES (2UL << 20)
/* The same warm-up as workloads/load/churn.py: WARM_UP_PAIRS there. */
#define WARM_UP_PAIRS 2
/* Latencies kept for the median: the first ones; later pairs are only counted. */
#define KEPT (4UL << 20)

struct churn {
	void *address;
	size_t size_bytes;
	double seconds;
};

static inline int64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void die(const char *what, int error)
{
	fprintf(stderr, "%s: %s\n", what, strerror(error));
	exit(1);
}

static inline double number(const char *name, const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value > 0)) {
		fprintf(stderr, "%s %s is no positive number\n", name, text);
		exit(2);
	}
	return value;
}

static inline struct churn prepare(const char *size, const char *seconds)
{
	struct churn churn = {
		.size_bytes = (size_t)number("SIZE_BYTES", size),
		.seconds = number("SECONDS", seconds),
	};
	size_t mapped = (churn.size_bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
	char *start = mmap(NULL, mapped + 2 * HUGE_BYTES, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (start == MAP_FAILED)
		die("mmap", errno);
	start = (char *)(((uintptr_t)start + HUGE_BYTES) & -HUGE_BYTES) + PAGE_BYTES;
	churn.address = mmap(start, mapped, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	if (churn.address == MAP_FAILED)
		die("mmap", errno);
	/* EINVAL: a kernel without transparent huge pages */
	if (madvise(churn.address, mapped, MADV_NOHUGEPAGE) && errno != EINVAL)
		die("madvise", errno);
	for (size_t offset = 0; offset < mapped; offset += PAGE_BYTES)
		start[offset] = 0x5a;
	return churn;
}

static inline int compare(const void *left, const void *right)
{
	int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;

	return (a > b) - (a < b);
}

static inline int64_t median(int64_t *values, size_t count)
{
	if (!count)
		return 0;
	qsort(values, count, sizeof(*values), compare);
	if (count % 2)
		return values[count / 2];
	return (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* Both return the nanoseconds of the call itself, and end the program where it fails. */
typedef int64_t (*timed_call)(const struct churn *churn);

static inline int run(const struct churn *churn, timed_call acquire, timed_call release)
{
	int64_t *acquired = malloc(KEPT * sizeof(*acquired));
	int64_t *released = malloc(KEPT * sizeof(*released));
	int64_t began, cpu, until, elapsed;
	size_t pairs = 0, kept;

	if (!acquired || !released)
		die("malloc", ENOMEM);
	for (int i = 0; i < WARM_UP_PAIRS; i++) {
		acquire(churn);
		release(churn);
	}
	cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID);
	began = now_ns(CLOCK_MONOTONIC);
	until = began + (int64_t)(churn->seconds * 1e9);
	do {
		int64_t acquire_ns = acquire(churn), release_ns = release(churn);

		if (pairs < KEPT) {
			acquired[pairs] = acquire_ns;
			released[pairs] = release_ns;
		}
		pairs++;
	} while (now_ns(CLOCK_MONOTONIC) < until);
	elapsed = now_ns(CLOCK_MONOTONIC) - began;
	cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	kept = pairs < KEPT ? pairs : KEPT;
	printf("{\"acquire_ns_median\": %lld, \"release_ns_median\": %lld, \"pairs\": %zu, "
	       "\"elapsed_ns\": %lld, \"cpu_ns\": %lld}\n",
	       (long long)median(acquired, kept), (long long)median(released, kept), pairs,
	       (long long)elapsed, (long long)cpu);
	return 0;
}

#endif
