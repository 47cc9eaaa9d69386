/*
 * Scope-based cleanup. A variable declared with one of these attributes is released when it goes out
 * of scope, so an early return stays correct when lines are added. Always initialise it. A function
 * that uses these has no goto. Hand ownership over with take_fd() and take_ptr().
 *
 * All closers keep errno.
 */
#pragma once

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define cleanup(fn) __attribute__((cleanup(fn)))
#define cleanup_free cleanup(cleanup_freep)
#define cleanup_close cleanup(cleanup_closep)
#define cleanup_dir cleanup(cleanup_closedirp)
#define cleanup_file cleanup(cleanup_fclosep)

static inline void cleanup_freep(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_closep(int *fd)
{
	int saved = errno;

	if (*fd >= 0)
		close(*fd);
	*fd = -1;
	errno = saved;
}

static inline void cleanup_closedirp(DIR **d)
{
	int saved = errno;

	if (*d)
		closedir(*d);
	errno = saved;
}

static inline void cleanup_fclosep(FILE **f)
{
	int saved = errno;

	if (*f)
		fclose(*f);
	errno = saved;
}

/* Returns *fd and leaves -1 behind: the caller owns the descriptor now. */
static inline int take_fd(int *fd)
{
	int r = *fd;

	*fd = -1;
	return r;
}

#define take_ptr(pp) \
	({ \
		__typeof__(*(pp)) take_ptr_p = *(pp); \
		*(pp) = NULL; \
		take_ptr_p; \
	})
