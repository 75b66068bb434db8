// SPDX-License-Identifier: GPL-2.0-only
/*
 * calltrouble: puts a real Linux into the states that the diagnosis has to
 * recognise: a ring that is lost, a CPU that takes no interrupts, CPUs that
 * wait for each other, a handler that does not end, and the two harmless ones
 * that look alike.
 *
 * It is a test guest's module, never for a machine that somebody needs.
 *
 *	insmod calltrouble.ko victim=1 caller=2
 *	echo lost > /sys/module/calltrouble/parameters/run
 *
 * The case begins by the write, not by the loading: the loader itself calls
 * all CPUs after a module's init function, and would be one more waiter.
 *
 * What was done is said on the console in lines "calltrouble: truth ...". The
 * readers of dumps are tested against these lines, so an address in them comes
 * from the module's own knowledge and never from a structure that a reader
 * looks at too.
 *
 * This program is free software; you can redistribute it and/or modify it
 * under the terms of the GNU General Public License version 2 as published by
 * the Free Software Foundation. It is distributed in the hope that it will be
 * useful, but WITHOUT ANY WARRANTY; without even the implied warranty of
 * MERCHANTABILITY or FITNESS FOR A PARTICULAR PURPOSE. See the GNU General
 * Public License for more details.
 */
#define pr_fmt(fmt) "calltrouble: " fmt

#include <linux/delay.h>
#include <linux/irqflags.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/nmi.h>
#include <linux/panic.h>
#include <linux/sched.h>
#include <linux/sched/task_stack.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/stop_machine.h>
#include <asm/apic.h>
#include <asm/nmi.h>
#include <asm/smp.h>

#include "calltrouble.h"

int victim = 1;
module_param(victim, int, 0444);
MODULE_PARM_DESC(victim, "CPU that does not take its calls");

static int caller = 2;
module_param(caller, int, 0444);
MODULE_PARM_DESC(caller, "CPU that waits for the victim");

static int third = 3;
module_param(third, int, 0444);
MODULE_PARM_DESC(third, "CPU that holds the lock, or is the next in a chain");

call_single_data_t posts[POSTS];

static void (*send_single)(int cpu);
static void (*send_many)(const struct cpumask *mask);

/* CPU whose next ring to the victim is lost; -1: no ring is lost. */
static int loser = -1;
static bool lost;
/* How many of the CPUs in a case have come to the point from which it goes on. */
static atomic_t arrived = ATOMIC_INIT(0);
static DEFINE_SPINLOCK(held_lock);

/* ---- losing a ring ---- */

static bool lose_this_one(int cpu)
{
	if (cpu != victim || READ_ONCE(loser) != raw_smp_processor_id())
		return false;
	WRITE_ONCE(loser, -1);
	WRITE_ONCE(lost, true);
	return true;
}

static void losing_send_single(int cpu)
{
	if (!lose_this_one(cpu))
		send_single(cpu);
}

static void losing_send_many(const struct cpumask *mask)
{
	static struct cpumask others;

	if (!cpumask_test_cpu(victim, mask) || !lose_this_one(victim)) {
		send_many(mask);
		return;
	}
	/* Only one ring is ever lost, so nobody else is using this mask. */
	cpumask_copy(&others, mask);
	cpumask_clear_cpu(victim, &others);
	send_many(&others);
}

/* The next ring of this CPU to the victim is lost. */
static void lose_next(void)
{
	WRITE_ONCE(loser, raw_smp_processor_id());
}

static void await(const char *what, bool (*come)(void))
{
	while (!come())
		msleep(20);
	pr_info("%s\n", what);
}

static bool ring_lost(void)
{
	return READ_ONCE(lost);
}

static bool one_arrived(void)
{
	return atomic_read(&arrived) >= 1;
}

static bool two_arrived(void)
{
	return atomic_read(&arrived) >= 2;
}

/* ---- what calls run ---- */

noinline void calltrouble_quick(void *info)
{
}

static noinline void calltrouble_brief(void *info)
{
	udelay(50);
}

static noinline void calltrouble_endless_handler(void *info)
{
	atomic_inc(&arrived);
	for (;;)
		cpu_relax();
}

/* ---- what CPUs do ---- */

static void say_who(const char *role)
{
	pr_info("truth role=%s cpu=%d pid=%d comm=%s stack=%px task=%px\n",
		role, raw_smp_processor_id(), current->pid, current->comm,
		task_stack_page(current), current);
}

static int call_and_lose(void *unused)
{
	say_who("caller");
	preempt_disable();
	lose_next();
	smp_call_function_single(victim, calltrouble_quick, NULL, 1);
	preempt_enable();
	pr_err("the call came back\n");
	return 0;
}

static int call_many_and_lose(void *unused)
{
	say_who("caller");
	preempt_disable();
	lose_next();
	smp_call_function(calltrouble_quick, NULL, 1);
	preempt_enable();
	pr_err("the call came back\n");
	return 0;
}

static int call_target(void *target)
{
	say_who("caller");
	atomic_inc(&arrived);
	smp_call_function_single((long)target, calltrouble_quick, NULL, 1);
	pr_err("the call came back\n");
	return 0;
}

static int call_endless(void *unused)
{
	say_who("caller");
	smp_call_function_single(victim, calltrouble_endless_handler, NULL, 1);
	pr_err("the call came back\n");
	return 0;
}

static int call_everybody(void *unused)
{
	smp_call_function(calltrouble_quick, NULL, 1);
	pr_err("the broadcast of CPU %d came back\n", raw_smp_processor_id());
	return 0;
}

static int post_and_lose(void *unused)
{
	int i, error;

	say_who("caller");
	preempt_disable();
	lose_next();
	for (i = 0; i < POSTS; i++) {
		posts[i].func = calltrouble_quick;
		posts[i].info = (void *)(long)i;
		error = smp_call_function_single_async(victim, &posts[i]);
		if (error)
			pr_err("post %d: error %d\n", i, error);
	}
	preempt_enable();
	return 0;
}

static int call_busily(void *unused)
{
	say_who("caller");
	atomic_inc(&arrived);
	while (!kthread_should_stop()) {
		smp_call_function_single(victim, calltrouble_brief, NULL, 1);
		cond_resched();
	}
	return 0;
}

static noinline void calltrouble_spin_irqs_off(void)
{
	local_irq_disable();
	atomic_inc(&arrived);
	for (;;)
		cpu_relax();
}

static int spin_irqs_off(void *unused)
{
	say_who("victim");
	calltrouble_spin_irqs_off();
	return 0;
}

/*
 * Two CPUs that call each other with interrupts off. Linux warns of such a
 * call and makes it all the same.
 */
static int call_peer_irqs_off(void *peer)
{
	say_who("peer");
	local_irq_disable();
	atomic_inc(&arrived);
	while (!two_arrived())
		cpu_relax();
	smp_call_function_single((long)peer, calltrouble_quick, NULL, 1);
	local_irq_enable();
	pr_err("the call came back\n");
	return 0;
}

/* The middle of a chain: waits with interrupts off, so its own callers wait. */
static int call_target_irqs_off(void *target)
{
	say_who("middle");
	local_irq_disable();
	atomic_inc(&arrived);
	smp_call_function_single((long)target, calltrouble_quick, NULL, 1);
	local_irq_enable();
	pr_err("the call came back\n");
	return 0;
}

static noinline void calltrouble_hold_lock(void)
{
	spin_lock(&held_lock);
	atomic_inc(&arrived);
	for (;;)
		cpu_relax();
}

static int hold_lock(void *unused)
{
	say_who("holder");
	calltrouble_hold_lock();
	return 0;
}

static noinline void calltrouble_want_lock_irqs_off(void)
{
	unsigned long flags;

	local_irq_save(flags);
	atomic_inc(&arrived);
	spin_lock(&held_lock);
	spin_unlock(&held_lock);
	local_irq_restore(flags);
}

static int want_lock(void *unused)
{
	say_who("victim");
	calltrouble_want_lock_irqs_off();
	return 0;
}

/* Holds the lock that the victim wants with interrupts off, and calls it. */
static int call_with_lock(void *unused)
{
	say_who("holder");
	spin_lock(&held_lock);
	atomic_inc(&arrived);
	while (!two_arrived())
		cpu_relax();
	smp_call_function_single(victim, calltrouble_quick, NULL, 1);
	spin_unlock(&held_lock);
	pr_err("the call came back\n");
	return 0;
}

/*
 * A post to a CPU that stands in stop_machine. It is the victim who posts: it
 * is the only one that still does anything.
 */
static noinline int calltrouble_stopped_machine(void *unused)
{
	posts[0].func = calltrouble_quick;
	smp_call_function_single_async(third, &posts[0]);
	for (;;)
		cpu_relax();
	return 0;
}

static int stop_everybody(void *unused)
{
	say_who("stopper");
	return stop_machine(calltrouble_stopped_machine, NULL, cpumask_of(victim));
}

/* No NMI is taken inside of an NMI handler: this CPU answers nobody any more. */
static noinline int calltrouble_endless_nmi(unsigned int type, struct pt_regs *regs)
{
	if (raw_smp_processor_id() != victim || !READ_ONCE(lost))
		return NMI_DONE;
	atomic_inc(&arrived);
	for (;;)
		cpu_relax();
}

static int die_in_nmi(void *unused)
{
	say_who("victim");
	WRITE_ONCE(lost, true);
	apic->send_IPI(victim, NMI_VECTOR);
	for (;;)
		cpu_relax();
	return 0;
}

static int panic_with_pending_ring(void *unused)
{
	say_who("victim");
	local_irq_disable();
	send_single(raw_smp_processor_id());
	udelay(100);
	panic("calltrouble: a call interrupt is pending and will never be taken");
}

/* ---- cases ---- */

static int start(int cpu, int (*does)(void *), long argument, const char *name)
{
	struct task_struct *task = kthread_create(does, (void *)argument, "%s/%d", name, cpu);

	if (IS_ERR(task))
		return PTR_ERR(task);
	kthread_bind(task, cpu);
	wake_up_process(task);
	return 0;
}

static int start_caller(void)
{
	return start(caller, call_target, victim, "caller");
}

static int case_lost(void)
{
	int error = start(caller, call_and_lose, 0, "caller");

	await("ring lost", ring_lost);
	return error;
}

static int case_lost_many(void)
{
	int error = start(caller, call_many_and_lose, 0, "caller");

	await("ring lost", ring_lost);
	return error;
}

static int case_lost_broadcast(void)
{
	int cpu, error = case_lost();

	for_each_online_cpu(cpu) {
		if (cpu == 0 || cpu == victim || cpu == caller)
			continue;
		error = error ?: start(cpu, call_everybody, 0, "broadcast");
	}
	return error;
}

static int case_posts(void)
{
	int error = start(caller, post_and_lose, 0, "caller");

	await("ring lost", ring_lost);
	pr_info("truth posts=%d first=%px last=%px size=%zu\n", POSTS, &posts[0],
		&posts[POSTS - 1], sizeof(posts[0]));
	return error;
}

static int case_irqs_off(void)
{
	int error = start(victim, spin_irqs_off, 0, "victim");

	await("victim spins", one_arrived);
	return error ?: start_caller();
}

static int case_mutual(void)
{
	int error = start(victim, call_peer_irqs_off, caller, "peer");

	return error ?: start(caller, call_peer_irqs_off, victim, "peer");
}

static int case_chain(void)
{
	int error = start(victim, spin_irqs_off, 0, "victim");

	await("victim spins", one_arrived);
	error = error ?: start(third, call_target_irqs_off, victim, "middle");
	await("the middle waits", two_arrived);
	return error ?: start(caller, call_target, third, "caller");
}

static int case_lock_chain(void)
{
	int error = start(third, hold_lock, 0, "holder");

	await("lock held", one_arrived);
	error = error ?: start(victim, want_lock, 0, "victim");
	await("victim wants the lock", two_arrived);
	return error ?: start_caller();
}

static int case_lock_call(void)
{
	int error = start(third, call_with_lock, 0, "holder");

	await("lock held", one_arrived);
	error = error ?: start(victim, want_lock, 0, "victim");
	await("victim wants the lock", two_arrived);
	return error ?: start_caller();
}

static int case_long_handler(void)
{
	int error = start(caller, call_endless, 0, "caller");

	await("handler runs", one_arrived);
	return error;
}

static int case_busy(void)
{
	int error = start(caller, call_busily, 0, "caller");

	error = error ?: start(third, call_busily, 0, "caller");
	await("callers run", two_arrived);
	return error;
}

static int case_healthy(void)
{
	int cpu;

	for_each_online_cpu(cpu)
		smp_call_function_single(cpu, calltrouble_quick, NULL, 1);
	on_each_cpu(calltrouble_quick, NULL, 1);
	return 0;
}

/*
 * A call that is listed on an offline CPU. Today's kernels look at the online
 * mask under the same protection under which a CPU leaves it, so the window in
 * which older ones did this is made by hand: the bit stands for as long as the
 * caller needs to pass the test.
 */
static int case_offline(void)
{
	struct cpumask *online = (struct cpumask *)cpu_online_mask;
	int error;

	if (cpu_online(victim))
		return -EBUSY;
	cpumask_set_cpu(victim, online);
	error = start_caller();
	await("caller waits", one_arrived);
	msleep(50);
	cpumask_clear_cpu(victim, online);
	return error;
}

static int case_stop_machine(void)
{
	pr_info("truth posts=1 first=%px last=%px size=%zu\n", &posts[0], &posts[0],
		sizeof(posts[0]));
	return start(caller, stop_everybody, 0, "stopper");
}

static int case_dead(void)
{
	int error = register_nmi_handler(NMI_LOCAL, calltrouble_endless_nmi, NMI_FLAG_FIRST,
					 "calltrouble");

	error = error ?: start(victim, die_in_nmi, 0, "victim");
	await("victim is in its NMI", one_arrived);
	return error ?: start_caller();
}

static int case_pending_panic(void)
{
	return start(victim, panic_with_pending_ring, 0, "victim");
}

/* Not a trouble: the figures of this kernel, with its own hooks and with idle targets. */
static int case_cost(void)
{
	smp_ops.send_call_func_single_ipi = send_single;
	smp_ops.send_call_func_ipi = send_many;
	return start(caller, measure_calls, 0, "cost");
}

static const struct {
	const char *name;
	int (*begin)(void);
} cases[] = {
	{ "lost", case_lost },
	{ "lost-many", case_lost_many },
	{ "lost-broadcast", case_lost_broadcast },
	{ "posts", case_posts },
	{ "irqs-off", case_irqs_off },
	{ "mutual", case_mutual },
	{ "chain", case_chain },
	{ "lock-chain", case_lock_chain },
	{ "lock-call", case_lock_call },
	{ "long-handler", case_long_handler },
	{ "busy", case_busy },
	{ "healthy", case_healthy },
	{ "offline", case_offline },
	{ "stop-machine", case_stop_machine },
	{ "dead", case_dead },
	{ "pending-panic", case_pending_panic },
	{ "cost", case_cost },
};

static int run_set(const char *value, const struct kernel_param *unused)
{
	int i, error;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		if (!sysfs_streq(value, cases[i].name))
			continue;
		pr_info("truth case=%s victim=%d caller=%d third=%d\n", cases[i].name, victim,
			caller, third);
		error = cases[i].begin();
		if (error)
			pr_err("the case did not begin: error %d\n", error);
		else
			pr_info("standing\n");
		return error;
	}
	return -EINVAL;
}

static const struct kernel_param_ops run_ops = { .set = run_set };
module_param_cb(run, &run_ops, NULL, 0200);
MODULE_PARM_DESC(run, "write the name of a case to begin it");

static int __init calltrouble_init(void)
{
	if (victim == caller || victim == third || caller == third) {
		pr_err("victim, caller and third must be three CPUs\n");
		return -EINVAL;
	}
	send_single = smp_ops.send_call_func_single_ipi;
	send_many = smp_ops.send_call_func_ipi;
	smp_ops.send_call_func_single_ipi = losing_send_single;
	smp_ops.send_call_func_ipi = losing_send_many;
	return 0;
}
/* No exit function: what is begun cannot be ended, and the guest is thrown away. */
module_init(calltrouble_init);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Puts a test guest into the states of lost and stuck cross-CPU calls");
