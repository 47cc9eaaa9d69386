/*
 * Is this an ELF file, with all it promises to load inside it? System V ABI, chapter 4 (ELF header) and 5 (program
 * header). The file is the administrator's: the check is for the error's sake, the VMM parses on its own.
 */
#include "kernel_image.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cleanup.h"

#define KERNEL_IMAGE_PHDRS_MAX 64

/* End of the last byte that a program header wants loaded: 0 = none, UINT64_MAX = not in any file. */
static uint64_t kernel_image_end64(int fd, const Elf64_Ehdr *h)
{
	uint64_t end = 0;

	for (unsigned int i = 0; i < MIN(h->e_phnum, KERNEL_IMAGE_PHDRS_MAX); i++) {
		Elf64_Phdr p;
		uint64_t last;

		if (pread(fd, &p, sizeof(p), (off_t)(h->e_phoff + i * sizeof(p))) != sizeof(p))
			return UINT64_MAX;
		if (p.p_type != PT_LOAD)
			continue;
		if (__builtin_add_overflow(p.p_offset, p.p_filesz, &last))
			return UINT64_MAX;
		end = MAX(end, last);
	}
	return end;
}

int kernel_image_check(const char *path, struct err *err)
{
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	Elf64_Ehdr h;
	struct stat st;
	uint64_t end;

	if (fd < 0 || fstat(fd, &st))
		return err_set(err, -errno, "kernel '%s'", path);
	if (pread(fd, &h, sizeof(h), 0) != sizeof(h) || memcmp(h.e_ident, ELFMAG, SELFMAG) != 0)
		return err_say(err, -ENOEXEC,
			       "kernel '%s' is not an ELF file: an uncompressed vmlinux is needed "
			       "(key 'kernel' of harpoon.conf)",
			       path);
	/* 32-bit images have other headers; QEMU loads them, and says itself when they are broken. */
	if (h.e_ident[EI_CLASS] != ELFCLASS64)
		return 0;
	end = kernel_image_end64(fd, &h);
	if (!end || end > (uint64_t)st.st_size)
		return err_say(
			err, -ENOEXEC,
			"kernel '%s' is cut short: %lld bytes (key 'kernel' of harpoon.conf)", path,
			(long long)st.st_size);
	return 0;
}
