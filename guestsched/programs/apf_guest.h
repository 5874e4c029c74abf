/*
 * The guest kernel's interface for programs in C, without a C library.
 *
 *     #include "apf_guest.h"
 *
 *     void _start(long instance, long a, long b)
 *     {
 *             apf_log("hello\n");
 *             apf_exit(0);
 *     }
 *
 *     gcc -static -nostdlib -ffreestanding -fno-pie -no-pie -O2 -I <directory of this file> -o hello hello.c
 *
 * The start. The kernel enters _start as if it had been called from address 0: RDI is the number of the task among
 * those of its program (from 0), RSI and RDX are two arguments of the user's, RSP + 8 is a multiple of 16, the word at
 * RSP is 0. All other registers are 0, the direction flag is clear, MXCSR and the x87 control word have their defaults.
 * _start must not return: there is nothing at address 0 but a page fault, which ends the task as crashed.
 *
 * System calls. Number in RAX, arguments in RDI, RSI, RDX; the result is in RAX, from -4095 to -1 an error (-EINVAL is
 * -22, -ENOMEM -12, -EFAULT -14, -ENOSYS -38). RCX and R11 are destroyed, nothing else is.
 *
 * What there is not. No thread-local variables (the FS base is 0, and nobody else's); no heap but apf_map; no signals;
 * no AVX, and programs must not be compiled with -mavx or -march=native (x86-64-v2 is fine). An unaligned SSE access
 * that a real CPU would refuse goes through. Floating point is exact and the same on every host, but for the x87's
 * transcendental instructions (fsin, fyl2x, ...): do not use them. Time is virtual: by default one instruction takes one nanosecond, and what
 * is computed costs the same in every run.
 */
#ifndef APF_GUEST_H
#define APF_GUEST_H

#ifdef __cplusplus
extern "C" {
#endif

enum {
	APF_SYS_WRITE = 1,
	APF_SYS_MAP = 9,
	APF_SYS_YIELD = 24,
	APF_SYS_SLEEP = 35,
	APF_SYS_EXIT = 60,
	APF_SYS_CLOCK = 228,
	APF_SYS_COUNT = 4096,
	APF_SYS_WAIT = 4097,
	APF_SYS_WAKE = 4098
};

#define APF_WRITE_MAX 4096

static inline long apf_syscall(long number, long a, long b, long c)
{
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c)
			 : "rcx", "r11", "memory");
	return result;
}

/* End this task. The run's report shows the status. */
__attribute__((noreturn)) static inline void apf_exit(long status)
{
	apf_syscall(APF_SYS_EXIT, status, 0, 0);
	__builtin_unreachable();
}

/* Let another task of this vCPU run, if there is one. */
static inline void apf_yield(void)
{
	apf_syscall(APF_SYS_YIELD, 0, 0, 0);
}

/* Sleep for at least so many nanoseconds of guest time. Returns 0. */
static inline long apf_sleep_ns(long ns)
{
	return apf_syscall(APF_SYS_SLEEP, ns, 0, 0);
}

/* Guest time in nanoseconds since the start of the run. */
static inline long apf_clock_ns(void)
{
	return apf_syscall(APF_SYS_CLOCK, 0, 0, 0);
}

/*
 * The vCPU's time in nanoseconds, without a system call. RDTSC tells when the straight piece of code that it is in
 * began; the jump makes it begin here.
 */
static inline unsigned long apf_time_ns(void)
{
	unsigned int low, high;

	__asm__ volatile("jmp 1f\n1:\trdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (unsigned long)high << 32 | low;
}

/* Add n to this task's counter, which the report shows. Returns 0. */
static inline long apf_count(unsigned long n)
{
	return apf_syscall(APF_SYS_COUNT, (long)n, 0, 0);
}

/* Fresh pages of zeros for so many bytes, for this process; (void *)0 if there is no room. They are never given back. */
static inline void *apf_map(unsigned long bytes)
{
	long address = apf_syscall(APF_SYS_MAP, (long)bytes, 0, 0);

	return address < 0 ? (void *)0 : (void *)address;
}

/*
 * Counting semaphores of this process, from 0 to 2^32 - 1, all 0 at first. wait takes one, or sleeps until it can;
 * wake adds n, and wakes who has slept longest first.
 */
static inline long apf_wait(unsigned int semaphore)
{
	return apf_syscall(APF_SYS_WAIT, (long)semaphore, 0, 0);
}

static inline long apf_wake(unsigned int semaphore, unsigned long n)
{
	return apf_syscall(APF_SYS_WAKE, (long)semaphore, (long)n, 0);
}

/* Write to the run's log (fd 1 or 2), at most APF_WRITE_MAX bytes. Returns the bytes written. */
static inline long apf_write(int fd, const void *text, unsigned long bytes)
{
	return apf_syscall(APF_SYS_WRITE, fd, (long)text, (long)bytes);
}

/* Write a string to the run's log, in pieces if it must be. */
static inline void apf_log(const char *text)
{
	unsigned long bytes = 0;

	for (;;) {
		if (bytes && (!text[bytes] || bytes == APF_WRITE_MAX)) {
			apf_write(1, text, bytes);
			text += bytes;
			bytes = 0;
		}
		if (!text[bytes])
			return;
		bytes++;
		__asm__ volatile("" : "+r"(bytes)); /* or gcc makes a call of strlen of this */
	}
}

/*
 * gcc calls these four even in a freestanding program. Weak, so that yours come first. A repeated string instruction
 * counts once for each repetition.
 */
__attribute__((weak)) void *memcpy(void *to, const void *from, unsigned long bytes)
{
	void *at = to;
	unsigned long words = bytes / 8, rest = bytes % 8;

	__asm__ volatile("rep movsq" : "+D"(at), "+S"(from), "+c"(words) : : "memory");
	__asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(rest) : : "memory");
	return to;
}

__attribute__((weak)) void *memset(void *to, int value, unsigned long bytes)
{
	void *at = to;
	unsigned long words = bytes / 8, rest = bytes % 8;
	unsigned long pattern = (unsigned char)value * 0x0101010101010101UL;

	__asm__ volatile("rep stosq" : "+D"(at), "+c"(words) : "a"(pattern) : "memory");
	__asm__ volatile("rep stosb" : "+D"(at), "+c"(rest) : "a"(pattern) : "memory");
	return to;
}

__attribute__((weak)) void *memmove(void *to, const void *from, unsigned long bytes)
{
	if ((unsigned long)to - (unsigned long)from < bytes) {
		unsigned char *at = (unsigned char *)to + bytes;
		const unsigned char *source = (const unsigned char *)from + bytes;

		while (bytes--) {
			*--at = *--source;
			__asm__ volatile("" : "+r"(at)); /* or gcc makes a call of memmove of this */
		}
		return to;
	}
	return memcpy(to, from, bytes);
}

__attribute__((weak)) int memcmp(const void *one, const void *other, unsigned long bytes)
{
	const unsigned char *a = (const unsigned char *)one, *b = (const unsigned char *)other;

	for (; bytes--; a++, b++)
		if (*a != *b)
			return *a - *b;
	return 0;
}

#ifdef __cplusplus
}
#endif
#endif
