/* Threads that get ready, wait for the system call filter, and serve. */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "server.h"

/* A worker's own needs are small; its buffers are on the heap. */
#define CREW_STACK (256 * 1024)

int server_crew_init(struct server_crew *crew, unsigned int nr_threads, struct err *err)
{
	*crew = (struct server_crew){.done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
	if (crew->done_fd < 0)
		return err_set(err, -errno, "create an eventfd");
	if (pthread_mutex_init(&crew->lock, NULL) ||
	    pthread_barrier_init(&crew->prepared, NULL, nr_threads + 1) ||
	    pthread_barrier_init(&crew->go, NULL, nr_threads + 1))
		return err_set(err, -ENOMEM, "create the gate of %u threads", nr_threads);
	return 0;
}

int server_crew_start_thread(struct server_crew *crew, void *(*fn)(void *), void *arg,
			     struct err *err)
{
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, CREW_STACK);
	r = pthread_create(&thread, &attr, fn, arg);
	pthread_attr_destroy(&attr);
	return r ? err_set(err, -r, "create a thread") : 0;
}

int server_crew_wait_prepared(struct server_crew *crew, struct err *err)
{
	pthread_barrier_wait(&crew->prepared);
	pthread_mutex_lock(&crew->lock);
	*err = crew->err;
	pthread_mutex_unlock(&crew->lock);
	return err->code;
}

void server_crew_open_gate(struct server_crew *crew)
{
	pthread_barrier_wait(&crew->go);
}

void server_crew_prepared(struct server_crew *crew, const struct err *err)
{
	if (err) {
		pthread_mutex_lock(&crew->lock);
		if (!crew->err.code)
			crew->err = *err;
		pthread_mutex_unlock(&crew->lock);
	}
	pthread_barrier_wait(&crew->prepared);
	pthread_barrier_wait(&crew->go);
}

void server_crew_end_program(struct server_crew *crew)
{
	(void)eventfd_write(crew->done_fd, 1);
}
