/*
 * How a guest learns what others have changed in a tree that it shares with them, so that inotify shows it there.
 *
 * The root directory has a file FS_EVENTS_NAME, which is not listed. A read of it waits until something has
 * changed, and answers with records: one byte of enum fs_event_kind, the path relative to the root
 * directory, a NUL. It may also answer with nothing: the reader reads again.
 *
 * Linux has no way to put events into a virtio-fs mount from outside. The reader, a process of the guest's agent,
 * therefore *replays* each record by the call that would have caused it. harpoon-fs does not carry out what
 * the process that reads the file asks for: a change is answered as if it had been made when it is the one of a record,
 * and refused otherwise. The kernel tells those who watch, and forgets what it knew of the file.
 */
#pragma once

/* No export has such a name. */
#define FS_EVENTS_NAME ":events"

/* Room for a read; one that is shorter is refused. */
#define FS_EVENTS_READ 65536

enum fs_event_kind {
	FS_EVENT_FILE = 'f',	/* made: replayed by mknod() */
	FS_EVENT_DIR = 'd',	/* made: mkdir() */
	FS_EVENT_LINK = 'l',	/* made: symlink() */
	FS_EVENT_FIFO = 'p',	/* made: mkfifo() */
	FS_EVENT_SOCKET = 's',	/* made: mknod() */
	FS_EVENT_UNLINK = 'u',	/* gone: unlink() */
	FS_EVENT_RMDIR = 'r',	/* gone: rmdir() */
	FS_EVENT_CONTENT = 'c', /* truncate() to the size that it has */
	FS_EVENT_ATTR = 'a',	/* utimensat() */
	FS_EVENT_CLOSED = 'w',	/* closed after writing: open() for writing and close() */
};
