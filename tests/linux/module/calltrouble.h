/* SPDX-License-Identifier: GPL-2.0-only */
/* What the two parts of the module share. */
#ifndef CALLTROUBLE_H
#define CALLTROUBLE_H

#include <linux/smp.h>

#define POSTS 108

/* The CPU that does not take its calls, or, where costs are measured, takes them all. */
extern int victim;
/* Descriptors of asynchronous calls. */
extern call_single_data_t posts[POSTS];

/* A call's function that does nothing. */
void calltrouble_quick(void *info);
/* A thread's function: says on the console what calls from its CPU cost. */
int measure_calls(void *unused);

#endif
