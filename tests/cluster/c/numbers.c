/*
 * Computes with doubles on more memory than there is, and counts what comes out: as a guest program, or with -DNATIVE as
 * one of the host, which prints it. Only + - * / and square roots, which IEEE 754 makes the same everywhere.
 *
 * _start(instance, pages, rounds): the exit status is 0, or says what was wrong.
 */
#define WORDS 512 /* doubles in a page */
#define USED 24   /* of which so many are computed with, from a place that differs from page to page */

#ifdef NATIVE
static void yield(void)
{
}
#else
#include "apf_guest.h"
#define yield apf_yield
#endif

static double root(double x)
{
	double result;

	__asm__("sqrtsd %1, %0" : "=x"(result) : "x"(x));
	return result;
}

static double *place(double *memory, unsigned long page)
{
	return memory + page * WORDS + page * 8 % (WORDS - USED);
}

static void fill(double *memory, long pages, long instance)
{
	double value = 1.0 + (double)instance / 3.0;

	for (long page = 0; page < pages; page++) {
		double *at = place(memory, page);

		if (page % 32 == 0)
			yield(); /* so that instances take turns, and fill the memory together */
		for (int i = 0; i < USED; i++) {
			value = value * 1.000030517578125 + 0.1;
			if (value > 1e6)
				value = root(value);
			at[i] = value - (double)i / 7.0;
		}
	}
}

static unsigned long bits_of(double value)
{
	unsigned long bits;

	__builtin_memcpy(&bits, &value, sizeof bits);
	return bits;
}

/* Each page from itself and the one before: a relaxation with some divisions. Every number goes into the checksum. */
static unsigned long relax(double *memory, long pages, unsigned long checksum)
{
	for (long page = 0; page < pages; page++) {
		double *at = place(memory, page), *before = place(memory, page ? page - 1 : pages - 1);

		if (page % 32 == 0)
			yield();
		for (int i = 0; i < USED; i++)
			at[i] = 0.5 * at[i] + 0.25 * before[i] + root(at[i] * at[i] + 2.0) / (3.0 + before[i] * before[i]);
		for (int i = 0; i < USED; i++)
			checksum = checksum * 6364136223846793005UL + bits_of(at[i]);
	}
	return checksum;
}

#ifdef NATIVE
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	long instance = atol(argv[1]), pages = atol(argv[2]), rounds = atol(argv[3]);
	double *memory = aligned_alloc(4096, pages * 4096);
	unsigned long checksum = 0;

	(void)argc;
	fill(memory, pages, instance);
	for (long round = 0; round < rounds; round++)
		checksum = relax(memory, pages, checksum);
	printf("%lu\n", checksum);
	return 0;
}
#else
void _start(long instance, long pages, long rounds)
{
	long began_ns = apf_clock_ns();
	unsigned long time_ns = apf_time_ns(), checksum = 0;
	double *memory = apf_map(pages * 4096);

	if (!memory)
		apf_exit(1);
	fill(memory, pages, instance);
	for (long round = 0; round < rounds; round++) {
		long now_ns;

		checksum = relax(memory, pages, checksum);
		apf_sleep_ns(50000);
		now_ns = apf_clock_ns();
		if (now_ns < began_ns + 50000)
			apf_exit(2);
		if (apf_time_ns() < time_ns + 50000)
			apf_exit(3);
		began_ns = now_ns;
		time_ns = apf_time_ns();
	}
	apf_count(checksum >> 32 << 32);
	apf_count(checksum & 0xffffffff);
	apf_log("done\n");
	apf_exit(0);
}
#endif
