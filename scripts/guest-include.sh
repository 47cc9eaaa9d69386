#!/bin/sh
# Makes DIR hold just the headers that musl-gcc does not see and the guest's programs need: the kernel's
# and protobuf-c's. Everything else of /usr/include is glibc's and must stay out of sight.
set -eu
dir=$1
multiarch=$(${CC_HOST:-gcc} -print-multiarch)
mkdir -p "$dir"
link() {
	[ -e "$1" ] || { echo "guest-include: $1 is missing, install $2" >&2; exit 1; }
	ln -sfn "$1" "$dir/$3"
}
link /usr/include/linux linux-libc-dev linux
link "/usr/include/$multiarch/asm" linux-libc-dev asm
link /usr/include/asm-generic linux-libc-dev asm-generic
link /usr/include/video linux-libc-dev video
link /usr/include/protobuf-c libprotobuf-c-dev protobuf-c
