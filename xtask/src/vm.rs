//! `cargo xtask vm`: the agent on other kernels than this machine's, in virtual machines of QEMU.

mod image;
mod kernel;

use std::fs;
use std::io::{BufRead, BufReader};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::process::root;
use crate::test::result;
use crate::tools;
use image::Image;
use kernel::{Kernel, NEWEST};

/// From the oldest kernel on which eBPF works to what will be in use next.
const KERNELS: [&str; 4] = ["5.10", "6.1", "6.12", NEWEST];

/// Test binaries of the agent that are worth running on other kernels, in this order: the last one's runc turns on the
/// cpuset controller for all cgroups, and before 6.2 a task that enters one of those forgets the CPUs it was pinned to.
const TESTS: [&str; 3] = ["ebpf", "node", "rights"];

/// Left to this machine's own kernel: what they hold to is not the kernel's, and an emulated CPU is a minute at them.
const LEFT_OUT: [&str; 2] = ["ten_thousand_cgroups_that_come_and_go", "four_thousand_threads_are_charged"];

/// A VM that takes longer hangs: this is several times what it needs on a busy machine.
const DEADLINE: Duration = Duration::from_secs(240);

/// Runs the agent's tests on Debian's kernels, in virtual machines with cgroup v2
///
/// Each VM has two CPUs, emulated on one, so this needs no KVM, and takes less than a minute; as many run at a time as this
/// machine has CPUs. The kernels are the newest of their line that the Debian mirror of this machine's apt has; the first
/// run fetches them into the cache, $EBB_CACHE or `ebb` in the user's cache folder. Installs QEMU with apt, for which it
/// needs root, unless it is there.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Which kernel, such as 6.1, or `newest`; may be repeated [default: 5.10, 6.1, 6.12 and newest]
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<String>,
    /// Look for newer kernels than those in the cache
    #[arg(long)]
    update: bool,
    /// Show everything that the VMs print
    #[arg(long)]
    verbose: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (passed, failed) = boot_all(args)?;
    println!("{passed} passed, {failed} failed");
    if failed > 0 {
        bail!("{failed} of {} kernels failed", passed + failed);
    }
    Ok(())
}

/// How many kernels passed and how many failed.
pub(crate) fn boot_all(args: &Args) -> Result<(u32, u32)> {
    let asked: Vec<&str> = match &args.kernels[..] {
        [] => KERNELS.to_vec(),
        kernels => kernels.iter().map(String::as_str).collect(),
    };
    tools::apt_install(&["busybox-static", "qemu-system-x86", "runc"])?;
    let work = root().join("target/vm");
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let image = work.join("initramfs");
    fs::write(&image, initramfs()?).with_context(|| format!("write {}", image.display()))?;

    // One after the other, as apt wants it.
    let kernels: Vec<_> = asked.into_iter().map(|asked| (asked, kernel::find(asked, args.update))).collect();
    let boot_one = |(asked, kernel): (&str, Result<Kernel>)| {
        let result = kernel.and_then(|kernel| {
            let start = Instant::now();
            let tests = boot(&kernel, &image, &work.join(format!("{asked}.log")), args.verbose)?;
            println!("{asked} ({}): {tests} tests passed, {:.0?}", kernel.version, start.elapsed());
            Ok(())
        });
        result.inspect_err(|error| println!("{asked}: failed: {error:#}")).is_ok()
    };
    // A VM takes one CPU: as many at a time as there are, unless people want to read along.
    let at_a_time = if args.verbose { 1 } else { std::thread::available_parallelism().map_or(1, NonZero::get) };
    let (start, all) = (Instant::now(), kernels.len());
    let queue = Mutex::new(kernels.into_iter());
    let passed = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_a_time.min(all) {
            scope.spawn(|| {
                loop {
                    let Some(next) = queue.lock().expect("nobody panics while holding it").next() else { return };
                    passed.fetch_add(u32::from(boot_one(next)), Ordering::Relaxed);
                }
            });
        }
    });
    println!("{:.0?} a kernel, {at_a_time} at a time", start.elapsed() / u32::try_from(all.max(1))?);
    let passed = passed.into_inner();
    Ok((passed, u32::try_from(all)? - passed))
}

fn initramfs() -> Result<Vec<u8>> {
    let built = build()?;
    let mut image = Image::default();
    for folder in ["/dev", "/proc", "/root", "/run", "/sys", "/tmp"] {
        image.folder(folder);
    }
    image.copy(Path::new("/bin/busybox"))?;
    // Busybox' have not all of their options.
    image.program(Path::new("/usr/bin/chrt"))?;
    image.program(Path::new("/usr/bin/taskset"))?;
    image.program(Path::new("/usr/sbin/runc"))?;
    for program in built.agent.iter().chain(built.tests.iter().map(|(_, path)| path)) {
        image.program(program)?;
    }
    for (_, test) in built.tests.iter().filter(|(name, _)| name == "ebpf") {
        image.program(&test.with_file_name("libfake_cuda.so"))?;
    }
    let tests = built.tests.iter().map(|(_, path)| format!(" {}", path.display())).collect::<String>();
    let skips = LEFT_OUT.map(|test| format!(" --skip {test}")).concat();
    let init = INIT.replace("{tests}", &tests).replace("{skips}", &skips);
    image.file("/init", init.as_bytes(), 0o755);
    Ok(image.finish())
}

/// The first process. What it prints goes to the serial console.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /bin /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo +cpu +memory +io +pids >/sys/fs/cgroup/cgroup.subtree_control
ip link set lo up
export PATH=/usr/bin:/bin:/sbin HOME=/root EBB_TEST_VM=1 RUST_BACKTRACE=1
for test in{tests}; do
    echo \"vm: runs $test\"
    $test --test-threads=1 --show-output{skips} 2>&1
    echo \"vm: $test ended with $?\"
done
echo vm: done
reboot -f
";

struct Built {
    agent: Option<PathBuf>,
    /// With their names.
    tests: Vec<(String, PathBuf)>,
}

fn build() -> Result<Built> {
    eprintln!("building the agent and its tests");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(["test", "--package", "ebb-agent", "--no-run", "--message-format", "json"]);
    command.args(["--profile", "vm"]).args(TESTS.iter().flat_map(|test| ["--test", test])).args(["--bin", "ebb-agent"]);
    let output = command.stderr(Stdio::inherit()).output().context("start cargo test")?;
    if !output.status.success() {
        bail!("cargo test --no-run ended with {}", output.status);
    }
    let mut built = Built { agent: None, tests: Vec::new() };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Value = serde_json::from_str(line).with_context(|| format!("read what cargo says: {line}"))?;
        let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) else {
            continue;
        };
        if TESTS.contains(&name) {
            built.tests.push((name.to_owned(), path.into()));
        } else if name == "ebb-agent" && message["profile"]["test"] == false {
            built.agent = Some(path.into());
        }
    }
    built.tests.sort_by_key(|(name, _)| TESTS.iter().position(|test| test == name));
    Ok(built)
}

/// Runs one VM to its end; returns how many tests passed. All that it prints is kept in `log`.
fn boot(kernel: &Kernel, image: &Path, log: &Path, verbose: bool) -> Result<u32> {
    let mut qemu = Command::new("qemu-system-x86_64");
    // On one thread: with one for each CPU, code that the kernel patches while it runs, as tracepoints, now and then
    // meets an emulated CPU half patched (`Oops: int3` on 7.3).
    qemu.args(["-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "1024", "-nodefaults", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio", "-kernel"])
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(image)
        // A kernel that panics reboots at once, which ends the VM.
        .args(["-append", "console=ttyS0 quiet panic=-1 psi=1 cgroup_no_v1=all"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = qemu.spawn().context("start qemu-system-x86_64")?;
    let serial = BufReader::new(child.stdout.take().expect("was asked for"));
    let (pid, ended) = (Pid::from_child(&child), AtomicBool::new(false));
    let text = std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                if start.elapsed() > DEADLINE {
                    // It may have ended by itself just now.
                    let _ = kill_process(pid, Signal::KILL);
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let mut text = String::new();
        for line in serial.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end_matches('\r');
            if verbose {
                println!("{line}");
            }
            text += &format!("{line}\n");
        }
        ended.store(true, Ordering::Relaxed);
        text
    });
    child.wait().context("wait for QEMU")?;
    fs::write(log, &text).with_context(|| format!("write {}", log.display()))?;
    judge(&text).with_context(|| format!("look into {}", log.display()))
}

/// What a VM's console says: how many tests passed, or what went wrong.
fn judge(console: &str) -> Result<u32> {
    let lines = || console.lines();
    let mut wrong: Vec<&str> = lines().filter(|line| line.starts_with("test ") && line.ends_with("FAILED")).collect();
    // Tests leave out what a machine lacks. These machines lack nothing.
    wrong.extend(lines().filter(|line| line.starts_with("not run: ")));
    wrong.extend(
        lines().filter(|line| line.starts_with("vm: ") && !line.ends_with(" ended with 0") && line.contains(" ended ")),
    );
    if !lines().any(|line| line == "vm: done") {
        wrong.push("it did not come to its end");
        wrong.extend(lines().last());
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(lines().filter_map(result).map(|(passed, _)| passed).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_is_judged_by_its_whole() {
        const PASSED: &str = "\
vm: runs /a
test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
vm: /a ended with 0
vm: runs /b
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s
vm: /b ended with 0
vm: done
";
        assert_eq!(judge(PASSED).expect("it passed"), 7);
        let check = |good, bad, expected| {
            let error = judge(&PASSED.replace(good, bad)).expect_err("it failed").to_string();
            assert_eq!(error, expected);
        };
        check("vm: runs /b", "test that ... FAILED", "test that ... FAILED");
        check("vm: runs /b", "not run: no BTF", "not run: no BTF");
        check("/b ended with 0", "/b ended with 139", "vm: /b ended with 139");
        check("vm: done\n", "Kernel panic\n", "it did not come to its end; Kernel panic");
    }
}
