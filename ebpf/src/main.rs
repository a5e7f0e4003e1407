//! Charges every stint on a CPU to a cgroup: how long it ran, and how long it had waited for its turn.
//! Rates, windows and classes belong to user space.

#![no_std]
#![no_main]

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{PerCpuArray, PerCpuHashMap};
use aya_ebpf::programs::BtfTracePointContext;
use ebb_abi::{Cpu, Usage};

/// Byte offsets in the running kernel's `task_struct`, set by the loader: rustc emits no CO-RE relocations.
#[unsafe(no_mangle)]
static PID: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static RUN_DELAY: Global<u64> = Global::new(0);

#[map]
static CPU: PerCpuArray<Cpu> = PerCpuArray::with_max_entries(1, 0);

/// By cgroup id. Allocated up front, because a switch is no place to allocate; the loader sets the size.
#[map]
static USAGE: PerCpuHashMap<u64, Usage> = PerCpuHashMap::with_max_entries(1, 0);

/// Opaque: only the offsets above say what is where.
enum Task {}

/// The kernel calls this with `(preempt, prev, next, ..)`, interrupts off, while `prev` is still current.
#[btf_tracepoint(function = "sched_switch")]
pub fn ebb_schedule(ctx: BtfTracePointContext) -> i32 {
    let (prev, next): (*const Task, *const Task) = (ctx.arg(1), ctx.arg(2));
    let Some(cpu) = CPU.get_ptr_mut(0) else { return 0 };
    // SAFETY: the value is this CPU's alone, and nothing interrupts a switch.
    let cpu = unsafe { &mut *cpu };
    let now = unsafe { bpf_ktime_get_ns() };

    // The idle task never waits and its time is nobody's, so after it there is nothing to charge.
    if cpu.pid != 0 {
        // The kernel may leave out a switch. Better to lose that stint than to give it to whoever ran next.
        if cpu.pid == pid(prev) {
            charge(cpu, now, run_delay(prev));
        } else {
            cpu.missed += 1;
        }
    }
    cpu.pid = pid(next);
    if cpu.pid != 0 {
        cpu.since_ns = now;
        cpu.run_delay_ns = run_delay(next);
    }
    0
}

#[inline(always)]
fn charge(cpu: &mut Cpu, now: u64, run_delay: u64) {
    if now < cpu.since_ns || run_delay < cpu.run_delay_ns {
        cpu.backwards += 1;
        return;
    }
    let (run_ns, wait_ns) = (now - cpu.since_ns, run_delay - cpu.run_delay_ns);
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if let Some(usage) = USAGE.get_ptr_mut(cgroup) {
        // SAFETY: the value is this CPU's alone, as above.
        let usage = unsafe { &mut *usage };
        usage.run_ns += run_ns;
        usage.wait_ns += wait_ns;
        usage.switches += 1;
    } else if USAGE.insert(cgroup, Usage { run_ns, wait_ns, switches: 1 }, BPF_ANY.into()).is_err() {
        cpu.full += 1;
    }
}

// The offsets lie in a map which the loader freezes, so the verifier knows their values and checks these as loads of
// fields that it knows. With `bpf_probe_read_kernel` in their place the whole program took twice as long over the clock.
// Volatile, so that rustc does not move them past the checks that the verifier follows.
#[inline(always)]
fn pid(task: *const Task) -> u64 {
    unsafe { task.byte_add(PID.load() as usize).cast::<u32>().read_volatile() }.into()
}

#[inline(always)]
fn run_delay(task: *const Task) -> u64 {
    unsafe { task.byte_add(RUN_DELAY.load() as usize).cast::<u64>().read_volatile() }
}

/// The yardstick of the bench: the least that a program with a clock can cost on this tracepoint.
#[btf_tracepoint(function = "sched_switch")]
pub fn ebb_clock(_ctx: BtfTracePointContext) -> i32 {
    // A helper's result that nobody uses is still a call: the kernel's helpers are not pure to the compiler.
    unsafe { bpf_ktime_get_ns() };
    0
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
