/* Works a little, and then does what only a kernel may. */
#include "apf_guest.h"

void _start(long instance, long a, long b)
{
	(void)instance, (void)a, (void)b;
	apf_count(7);
	__asm__ volatile("cli");
	apf_count(1000);
	apf_exit(0);
}
