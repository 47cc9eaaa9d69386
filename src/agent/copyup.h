/* runc's mount option "tmpcopyup": a new tmpfs begins with what the image has at its place. */
#pragma once

#include "err.h"

/* Copies the content of the folder `from` (O_PATH) into the empty `to`, a detached mount. Owners, modes, times. */
int copyup(int from, int to, struct err *err);
