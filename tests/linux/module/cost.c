// SPDX-License-Identifier: GPL-2.0-only
/*
 * What this kernel's cross-CPU calls cost, in ticks of the TSC. Under QEMU's
 * icount those are the instructions of all CPUs, and runs repeat exactly.
 *
 * This program is free software; you can redistribute it and/or modify it
 * under the terms of the GNU General Public License version 2 as published by
 * the Free Software Foundation. It is distributed in the hope that it will be
 * useful, but WITHOUT ANY WARRANTY; without even the implied warranty of
 * MERCHANTABILITY or FITNESS FOR A PARTICULAR PURPOSE. See the GNU General
 * Public License for more details.
 */
#define pr_fmt(fmt) "calltrouble: " fmt

#include <linux/cpumask.h>
#include <linux/preempt.h>
#include <linux/printk.h>
#include <linux/smp.h>
#include <linux/sort.h>
#include <asm/tsc.h>

#include "calltrouble.h"

#define ROUNDS 500
#define BURST 64
static u64 taken[ROUNDS];

static int by_size(const void *a, const void *b)
{
	u64 first = *(const u64 *)a, second = *(const u64 *)b;

	return first < second ? -1 : first > second;
}

/* Ticks of the TSC; under icount it counts the instructions of all CPUs. */
static void say_cost(const char *what, int targets, int each)
{
	sort(taken, ROUNDS, sizeof(taken[0]), by_size, NULL);
	pr_info("cost of=%s targets=%d rounds=%d each=%d least=%llu median=%llu most=%llu\n", what,
		targets, ROUNDS, each, taken[0] / each, taken[ROUNDS / 2] / each,
		taken[ROUNDS - 1] / each);
}

static void await_posts(int count)
{
	int i;

	for (i = 0; i < count; i++)
		while (READ_ONCE(posts[i].node.u_flags) & CSD_FLAG_LOCK)
			cpu_relax();
}

static void measure_single(void)
{
	int round;

	for (round = 0; round < ROUNDS; round++) {
		u64 start = rdtsc();

		smp_call_function_single(victim, calltrouble_quick, NULL, 1);
		taken[round] = rdtsc() - start;
	}
	say_cost("single", 1, 1);
}

static void measure_many(const struct cpumask *targets)
{
	int round;

	for (round = 0; round < ROUNDS; round++) {
		u64 start = rdtsc();

		smp_call_function_many(targets, calltrouble_quick, NULL, true);
		taken[round] = rdtsc() - start;
	}
	say_cost("many", cpumask_weight(targets), 1);
}

/* What the sender itself spends until its posts are listed; they run before the next round. */
static void measure_posts(const char *what, int count)
{
	int round, i;

	for (i = 0; i < count; i++) {
		posts[i].func = calltrouble_quick;
		posts[i].info = NULL;
	}
	for (round = 0; round < ROUNDS; round++) {
		u64 start = rdtsc();

		for (i = 0; i < count; i++)
			smp_call_function_single_async(victim, &posts[i]);
		taken[round] = rdtsc() - start;
		await_posts(count);
	}
	say_cost(what, 1, count);
}

int measure_calls(void *unused)
{
	static struct cpumask targets;
	int cpu, round;

	preempt_disable();
	for (round = 0; round < ROUNDS; round++) {
		u64 start = rdtsc();

		taken[round] = rdtsc() - start;
	}
	say_cost("nothing", 0, 1);
	measure_single();
	for_each_online_cpu(cpu) {
		if (cpu != raw_smp_processor_id() && cpumask_weight(&targets) < 3)
			cpumask_set_cpu(cpu, &targets);
	}
	measure_many(&targets);
	if (num_online_cpus() > 4) {
		cpumask_copy(&targets, cpu_online_mask);
		cpumask_clear_cpu(raw_smp_processor_id(), &targets);
		measure_many(&targets);
	}
	measure_posts("post", 1);
	measure_posts("burst", BURST);
	preempt_enable();
	pr_info("measured\n");
	return 0;
}
