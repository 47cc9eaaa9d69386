/* Kernel loader; see kernel.h. Thread: the loop's, before any vCPU runs. */
#include "kernel.h"

#include <elf.h>
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"
#include "util.h"

#define KERNEL_PHDRS_MAX 64
#define KERNEL_PAGE 4096ull

#if defined(__x86_64__)
#define KERNEL_MACHINE EM_X86_64
#else
#error "no guest architecture"
#endif

/* Part of the file at host memory `to`: whole pages that lie alike in file and memory are mapped. */
static int kernel_place(int fd, uint8_t *to, uint64_t offset, uint64_t len)
{
	uint64_t head = (KERNEL_PAGE - (uintptr_t)to % KERNEL_PAGE) % KERNEL_PAGE, whole;
	int r;

	if ((uintptr_t)to % KERNEL_PAGE != offset % KERNEL_PAGE || len < head + KERNEL_PAGE)
		return io_pread_full(fd, to, len, (off_t)offset);
	r = io_pread_full(fd, to, head, (off_t)offset);
	if (r)
		return r;
	whole = (len - head) / KERNEL_PAGE * KERNEL_PAGE;
	if (mmap(to + head, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
		 fd, (off_t)(offset + head)) == MAP_FAILED)
		return -errno;
	return io_pread_full(fd, to + head + whole, len - head - whole,
			     (off_t)(offset + head + whole));
}

static int kernel_load_segment(int fd, const struct guest_mem *mem, const Elf64_Phdr *p,
			       uint64_t file_len, uint64_t min, struct err *err)
{
	uint64_t end;
	uint8_t *to;
	int r;

	if (__builtin_add_overflow(p->p_offset, p->p_filesz, &end) || end > file_len ||
	    p->p_filesz > p->p_memsz)
		return err_say(err, -ENOEXEC, "the kernel is cut short: %llu bytes",
			       (unsigned long long)file_len);
	to = p->p_paddr >= min ? guest_mem_ptr(mem, (gpa_t){p->p_paddr}, p->p_memsz) : NULL;
	if (!to)
		return err_say(err, -ENOMEM,
			       "the kernel wants memory from 0x%llx on, %llu bytes, which the VM "
			       "does not have",
			       (unsigned long long)p->p_paddr, (unsigned long long)p->p_memsz);
	/* What follows the file's part is zero already: guest memory is fresh. */
	r = kernel_place(fd, to, p->p_offset, p->p_filesz);
	return r ? err_set(err, r, "load the kernel") : 0;
}

static int kernel_check_header(const Elf64_Ehdr *h, struct err *err)
{
	if (memcmp(h->e_ident, ELFMAG, SELFMAG) != 0 || h->e_ident[EI_CLASS] != ELFCLASS64 ||
	    h->e_ident[EI_DATA] != ELFDATA2LSB || h->e_machine != KERNEL_MACHINE ||
	    (h->e_type != ET_EXEC && h->e_type != ET_DYN))
		return err_say(err, -ENOEXEC,
			       "the kernel is not a 64-bit ELF program for this machine: an "
			       "uncompressed vmlinux is needed");
	if (h->e_phentsize != sizeof(Elf64_Phdr) || !h->e_phnum || h->e_phnum > KERNEL_PHDRS_MAX ||
	    h->e_phoff > INT64_MAX - KERNEL_PHDRS_MAX * sizeof(Elf64_Phdr))
		return err_say(err, -ENOEXEC, "the kernel's program headers make no sense");
	return 0;
}

int kernel_load(int fd, const struct guest_mem *mem, uint64_t min, struct kernel_image *ret,
		struct err *err)
{
	struct kernel_image k = {.start = UINT64_MAX};
	bool entered = false;
	Elf64_Ehdr h;
	struct stat st;
	int r;

	if (fstat(fd, &st))
		return err_set(err, -errno, "look at the kernel");
	if (io_pread_full(fd, &h, sizeof(h), 0))
		return err_say(err, -ENOEXEC, "the kernel is shorter than an ELF header");
	r = kernel_check_header(&h, err);
	for (unsigned int i = 0; i < h.e_phnum && !r; i++) {
		Elf64_Phdr p;

		if (io_pread_full(fd, &p, sizeof(p), (off_t)(h.e_phoff + i * sizeof(p))))
			return err_say(err, -ENOEXEC, "the kernel's program headers are cut off");
		if (p.p_type != PT_LOAD || !p.p_memsz)
			continue;
		r = kernel_load_segment(fd, mem, &p, (uint64_t)st.st_size, min, err);
		k.start = MIN(k.start, p.p_paddr);
		k.end = MAX(k.end, p.p_paddr + p.p_memsz);
		entered |= h.e_entry >= p.p_paddr && h.e_entry - p.p_paddr < p.p_filesz;
	}
	if (r)
		return r;
	if (!entered)
		return err_say(err, -ENOEXEC, "the kernel starts at 0x%llx, where it has no code",
			       (unsigned long long)h.e_entry);
	k.entry = h.e_entry;
	*ret = k;
	return 0;
}

int kernel_place_file(int fd, const struct guest_mem *mem, uint64_t gpa, uint64_t len,
		      struct err *err)
{
	uint8_t *to = guest_mem_ptr(mem, (gpa_t){gpa}, len);
	int r = to ? kernel_place(fd, to, 0, len) : -ENOMEM;

	return r ? err_set(err, r, "load the initrd") : 0;
}
