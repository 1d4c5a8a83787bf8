/* Threads that write to files with direct I/O, for a process with real-time priority: see write_threads.c. */
#ifndef XENTOOL_WRITE_THREADS_H
#define XENTOOL_WRITE_THREADS_H

#include "file_io.h"

struct write_threads;

/* Whether writes to this file are better done by threads than through io_uring. */
int write_threads_suit(const struct file *file);
/* For up to `depth` writes at a time. NULL without memory or descriptors. No thread is started yet. */
struct write_threads *write_threads_open(uint32_t depth);
/* A descriptor that becomes readable when as many writes have ended as was asked for (write_threads_await). */
int write_threads_fd(const struct write_threads *threads);
/* Takes over a write, to a file that stays where it is. Returns false if there is no thread for it. */
int write_threads_add(struct write_threads *threads, const struct file *file, const struct xt_io *op);
/* Has the threads begin with what was added. */
void write_threads_begin(struct write_threads *threads);
/* Writes added whose end has not been taken. */
uint32_t write_threads_in_flight(const struct write_threads *threads);
/* Takes up to `max` ends; returns how many. */
uint32_t write_threads_take(struct write_threads *threads, struct xt_io_done *done, uint32_t max);
/* Asks to be woken when `wanted` ends can be taken. Returns true if they can be already. */
int write_threads_await(struct write_threads *threads, uint32_t wanted);
/* The wait is over, however it ended. */
void write_threads_woke(struct write_threads *threads);
/* Waits for what was added, and ends the threads. Harmless for NULL. */
void write_threads_close(struct write_threads *threads);

#endif
