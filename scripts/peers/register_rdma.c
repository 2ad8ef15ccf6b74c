/*
 * Registers and deregisters one memory region of an RDMA device, and does nothing else.
 * Usage: register_rdma DEVICE SIZE_BYTES SECONDS
 *
 * ibv_reg_mr(3) with local write, remote write and remote read, which is the access "rw" of
 * workloads/verbs.py. The peer of workloads/load/register_rdma.py at depth 1.
 */
#include <infiniband/verbs.h>

#include "churn.h"

#define ACCESS (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ)

static struct ibv_pd *domain;
static struct ibv_mr *region;

static int64_t acquire(const struct churn *churn)
{
	int64_t start = now_ns(CLOCK_MONOTONIC), elapsed;

	region = ibv_reg_mr(domain, churn->address, churn->size_bytes, ACCESS);
	elapsed = now_ns(CLOCK_MONOTONIC) - start;
	if (!region)
		die("ibv_reg_mr", errno);
	return elapsed;
}

static int64_t release(const struct churn *churn)
{
	int64_t start = now_ns(CLOCK_MONOTONIC), elapsed;
	int error = ibv_dereg_mr(region);

	elapsed = now_ns(CLOCK_MONOTONIC) - start;
	if (error)
		die("ibv_dereg_mr", error);
	return elapsed;
}

static struct ibv_context *open_device(const char *name)
{
	struct ibv_device **devices = ibv_get_device_list(NULL);
	struct ibv_context *context = NULL;

	if (!devices)
		die("ibv_get_device_list", errno);
	for (int i = 0; devices[i] && !context; i++) {
		if (strcmp(ibv_get_device_name(devices[i]), name))
			continue;
		context = ibv_open_device(devices[i]);
		if (!context)
			die("ibv_open_device", errno);
	}
	ibv_free_device_list(devices);
	if (!context) {
		fprintf(stderr, "there is no RDMA device %s\n", name);
		exit(2);
	}
	return context;
}

int main(int argc, char **argv)
{
	struct ibv_context *context;
	struct churn churn;
	int status;

	if (argc != 4) {
		fprintf(stderr, "usage: register_rdma DEVICE SIZE_BYTES SECONDS\n");
		return 2;
	}
	churn = prepare(argv[2], argv[3]);
	context = open_device(argv[1]);
	domain = ibv_alloc_pd(context);
	if (!domain)
		die("ibv_alloc_pd", errno);
	status = run(&churn, acquire, release);
	ibv_dealloc_pd(domain);
	ibv_close_device(context);
	return status;
}
