//! Charges every stint on a CPU to a cgroup: how long it ran, how long it had waited for its turn, and who ended it.
//! Another program, attached where that is asked for, counts launches of CUDA kernels. Rates, windows and classes belong
//! to user space.

#![no_std]
#![no_main]
// `AtomicU64` has only loads and stores on this target, as it lacks a compare-and-swap. The compiler is pinned.
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "for one instruction")]

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr;

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, map, uprobe};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap};
use aya_ebpf::programs::{BtfTracePointContext, ProbeContext};
use ebb_abi::{Cpu, Preemptor, Usage, bucket, departed};

// Byte offsets in the running kernel's structs, set by the loader: rustc emits no CO-RE relocations.
/// In `task_struct`.
#[unsafe(no_mangle)]
static PID: Global<u64> = Global::new(0);
/// In `task_struct`.
#[unsafe(no_mangle)]
static RUN_DELAY: Global<u64> = Global::new(0);
/// In `task_struct`; `__state`, or `state` before Linux 5.14.
#[unsafe(no_mangle)]
static STATE: Global<u64> = Global::new(0);
/// In `task_struct`.
#[unsafe(no_mangle)]
static CGROUPS: Global<u64> = Global::new(0);
/// In `css_set`.
#[unsafe(no_mangle)]
static DFL_CGRP: Global<u64> = Global::new(0);
/// In `cgroup`.
#[unsafe(no_mangle)]
static KN: Global<u64> = Global::new(0);
/// In `kernfs_node`.
#[unsafe(no_mangle)]
static ID: Global<u64> = Global::new(0);

#[map]
static CPU: PerCpuArray<Cpu> = PerCpuArray::with_max_entries(1, 0);

/// By cgroup id. Allocated up front, because a switch is no place to allocate; the loader sets the size.
#[map]
static USAGE: PerCpuHashMap<u64, Usage> = PerCpuHashMap::with_max_entries(1, 0);

/// Each task's `run_delay` when it last left a CPU. The kernel adds to it also while the task waits, when it moves from
/// one CPU's queue to another's: without this, a wait that ended on another CPU would count from the move only.
#[map]
static DEPARTED: Array<u64> = Array::with_max_entries(departed::PLACES, 0);

/// The pod of a cgroup, 0 for none, by cgroup id. User space writes it; the loader sets the size.
#[map]
static OWNER: HashMap<u64, u64> = HashMap::with_max_entries(1, 0);

/// Launches of CUDA kernels, by cgroup id. The loader sets the size.
#[map]
static LAUNCHES: PerCpuHashMap<u64, u64> = PerCpuHashMap::with_max_entries(1, 0);

/// Those of cgroups that found no room there.
#[map]
static LAUNCHES_DROPPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Read-only memory of the program: on its stack, it would have to be cleared byte by byte.
static EMPTY: Usage = Usage { run_ns: 0, wait_ns: 0, preemptions: [0; _], latency: [0; _] };

/// Opaque: only the offsets above say what is where.
enum Task {}

/// The kernel calls this with `(preempt, prev, next, ..)`, interrupts off, while `prev` is still current.
#[btf_tracepoint(function = "sched_switch")]
pub fn ebb_schedule(ctx: BtfTracePointContext) -> i32 {
    let (preempt, prev, next): (u64, *const Task, *const Task) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let Some(cpu) = CPU.get_ptr_mut(0) else { return 0 };
    // SAFETY: the value is this CPU's alone, and nothing interrupts a switch.
    let cpu = unsafe { &mut *cpu };
    let now = unsafe { bpf_ktime_get_ns() };
    let since = cpu.since_ns;
    // Readers rely on these stores being where they are: see `Cpu::since_ns`.
    unsafe { ptr::write_volatile(&mut cpu.since_ns, 0) };
    let (next_pid, cgroup) = (pid(next), cgroup_id(next));
    // The first switch that the program sees ends a stint of which it knows nothing.
    if since != 0 {
        leave(cpu, prev, now - since, if next_pid == 0 { None } else { Some(cgroup) }, preempt != 0);
    }
    cpu.pid = next_pid;
    cpu.cgroup = cgroup;
    if next_pid != 0 {
        cpu.run_delay_ns = departed_run_delay(next, next_pid);
    }
    unsafe { ptr::write_volatile(&mut cpu.since_ns, now) };
    0
}

/// `preemptor`: the cgroup of the task that comes, unless that is the idle task.
#[inline(always)]
fn leave(cpu: &mut Cpu, prev: *const Task, ran_ns: u64, preemptor: Option<u64>, preempt: bool) {
    let left = pid(prev);
    // The kernel may leave out a switch. Better to lose that stint than to give it to whoever ran next.
    if cpu.pid != left {
        cpu.missed += 1;
        cpu.lost_ns += ran_ns;
        return;
    }
    // The idle task never waits, nobody takes its CPU away, and its time is nobody's.
    if left == 0 {
        cpu.idle_ns += ran_ns;
        return;
    }
    let delay = run_delay(prev);
    if let Some(place) = DEPARTED.get_ptr_mut(departed::place(left)) {
        // SAFETY: one aligned word. Two CPUs may write here at once; either word is a whole one.
        unsafe { ptr::write_volatile(place, departed::word(left, delay)) };
    }
    if delay < cpu.run_delay_ns {
        cpu.backwards += 1;
        cpu.lost_ns += ran_ns;
        return;
    }
    let wait_ns = delay - cpu.run_delay_ns;
    let bucket = bucket(wait_ns);
    cpu.wait_ns += wait_ns;
    cpu.latency[bucket] += 1;
    let Some(usage) = usage(cpu.cgroup) else {
        cpu.full += 1;
        cpu.lost_ns += ran_ns;
        return;
    };
    usage.run_ns += ran_ns;
    usage.wait_ns += wait_ns;
    usage.latency[bucket] += 1;
    if let Some(preemptor) = preemptor
        && (preempt || state(prev) == RUNNING)
    {
        usage.preemptions[preempted_by(cpu.cgroup, preemptor) as usize] += 1;
    }
}

/// `None`: no room for one more cgroup.
#[inline(always)]
fn usage<'a>(cgroup: u64) -> Option<&'a mut Usage> {
    let found = match USAGE.get_ptr_mut(cgroup) {
        Some(found) => found,
        None => {
            USAGE.insert(cgroup, &EMPTY, BPF_ANY.into()).ok()?;
            USAGE.get_ptr_mut(cgroup)?
        }
    };
    // SAFETY: the value is this CPU's alone, and nothing interrupts a switch.
    Some(unsafe { &mut *found })
}

#[inline(always)]
fn preempted_by(victim: u64, preemptor: u64) -> Preemptor {
    // SAFETY: a word, read whole.
    let owner = |cgroup| unsafe { OWNER.get(cgroup) }.copied();
    match owner(preemptor) {
        None => Preemptor::Unknown,
        Some(0) => Preemptor::System,
        Some(pod) if owner(victim) == Some(pod) => Preemptor::SamePod,
        Some(_) => Preemptor::OtherPod,
    }
}

/// `run_delay` when the task last left a CPU, or now if that is not known.
#[inline(always)]
fn departed_run_delay(task: *const Task, pid: u64) -> u64 {
    let now = run_delay(task);
    let Some(place) = DEPARTED.get_ptr(departed::place(pid)) else { return now };
    match departed::run_delay_ns(unsafe { ptr::read_volatile(place) }, pid) {
        // More than now: an earlier task had the same pid.
        Some(then) if then <= now => then,
        _ => now,
    }
}

// The offsets lie in a map which the loader freezes, so the verifier knows their values and checks these as loads of
// fields that it knows. With `bpf_probe_read_kernel` in their place the whole program took twice as long over the clock.
// Volatile, so that rustc does not move them past the checks that the verifier follows.
#[inline(always)]
fn field<T: Copy, S>(of: *const S, offset: &Global<u64>) -> T {
    unsafe { of.byte_add(offset.load() as usize).cast::<T>().read_volatile() }
}

#[inline(always)]
fn pid(task: *const Task) -> u64 {
    field::<u32, _>(task, &PID).into()
}

#[inline(always)]
fn run_delay(task: *const Task) -> u64 {
    field(task, &RUN_DELAY)
}

/// `TASK_RUNNING`: could have gone on. The low half of what was a `long` before Linux 5.14.
const RUNNING: u32 = 0;

#[inline(always)]
fn state(task: *const Task) -> u32 {
    field(task, &STATE)
}

/// As `bpf_get_current_cgroup_id`, but of any task: the id of its cgroup in the version 2 hierarchy.
#[inline(always)]
fn cgroup_id(task: *const Task) -> u64 {
    enum CssSet {}
    enum Cgroup {}
    enum KernfsNode {}
    let css_set: *const CssSet = field(task, &CGROUPS);
    let cgroup: *const Cgroup = field(css_set, &DFL_CGRP);
    let node: *const KernfsNode = field(cgroup, &KN);
    field(node, &ID)
}

/// At the first instruction of a function that launches a kernel, in the process that calls it.
#[uprobe]
pub fn ebb_cuda_launch(_ctx: ProbeContext) -> u32 {
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    let count = LAUNCHES.get_ptr_mut(cgroup).or_else(|| {
        let _ = LAUNCHES.insert(cgroup, &0, BPF_NOEXIST.into());
        LAUNCHES.get_ptr_mut(cgroup).or_else(|| LAUNCHES_DROPPED.get_ptr_mut(0))
    });
    if let Some(count) = count {
        // SAFETY: an aligned word in a map. Another task may take this CPU in between, so the addition is one instruction.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1) };
    }
    0
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
