/* Counts a hundred and the number of its instance, and exits with 7 and that number. */
#include "apf_guest.h"

void _start(long instance, long a, long b)
{
	apf_count(100 + instance + a + b);
	apf_exit(7 + instance);
}
