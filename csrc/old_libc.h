/*
 * The shim must load wherever the Bun that carries it runs, and Bun needs no C library newer than 2.17. Since 2.34 the
 * thread functions exist in a second, newer version that is the same function, and the linker would pick that one. A
 * test compares the versions that the shim and Bun require.
 */
#ifndef XENTOOL_OLD_LIBC_H
#define XENTOOL_OLD_LIBC_H

#if defined(__x86_64__)
#define XT_FIRST_LIBC "GLIBC_2.2.5"
#define XT_CLOCK_LIBC "GLIBC_2.3.3"
#define XT_ROBUST_LIBC "GLIBC_2.12"
#elif defined(__aarch64__)
#define XT_FIRST_LIBC "GLIBC_2.17"
#define XT_CLOCK_LIBC "GLIBC_2.17"
#define XT_ROBUST_LIBC "GLIBC_2.17"
#else
#error "which versions of its functions does the C library have on this processor?"
#endif

#define XT_OLD(name, version) __asm__(".symver " #name "," #name "@" version)

XT_OLD(pthread_mutexattr_init, XT_FIRST_LIBC);
XT_OLD(pthread_mutexattr_destroy, XT_FIRST_LIBC);
XT_OLD(pthread_mutexattr_setpshared, XT_FIRST_LIBC);
XT_OLD(pthread_mutexattr_setrobust, XT_ROBUST_LIBC);
XT_OLD(pthread_mutex_consistent, XT_ROBUST_LIBC);
XT_OLD(pthread_mutex_timedlock, XT_FIRST_LIBC);
XT_OLD(pthread_mutex_trylock, XT_FIRST_LIBC);
XT_OLD(pthread_condattr_setclock, XT_CLOCK_LIBC);
XT_OLD(pthread_attr_setstacksize, XT_FIRST_LIBC);
XT_OLD(pthread_sigmask, XT_FIRST_LIBC);
XT_OLD(pthread_create, XT_FIRST_LIBC);

#endif
