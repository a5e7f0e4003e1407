//! The agent in a container with the least rights, run by runc as a container runtime on a node would.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::Serving;
use serde_json::{Value, json};

const CAP_BPF: u64 = 1 << 39;

/// What containerd's default profile refuses to a container with BPF and PERFMON only, as far as it can be said without
/// arguments (`contrib/seccomp/seccomp_default.go`).
const REFUSED: &[&str] = &[
    "acct",
    "add_key",
    "clock_adjtime",
    "clock_settime",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "open_by_handle_at",
    "open_tree",
    "pivot_root",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "quotactl",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
];

#[test]
fn two_capabilities_without_root_are_enough_and_are_given_up() {
    let Some(agent) = Contained::start(65_532, needed()) else { return };
    agent.measures_with_ebpf_and_keeps_nothing();
}

#[test]
fn root_by_number_only_as_in_the_chart_is_enough_too() {
    let Some(agent) = Contained::start(0, needed()) else { return };
    agent.measures_with_ebpf_and_keeps_nothing();
}

#[test]
fn launches_take_one_right_more_which_is_given_up_too() {
    let Some(agent) = Contained::start(0, &[needed(), &["CAP_SYS_ADMIN"]].concat()) else { return };
    agent.measures_with_ebpf_and_keeps_nothing();
}

#[test]
fn without_a_right_the_agent_runs_and_says_what_is_missing() {
    let Some(agent) = Contained::start(65_532, &[]) else { return };
    let page = agent.serving.get("/metrics").2;
    assert!(page.contains("ebb_source_up{source=\"ebpf\"} 0"), "{page}");
    assert!(page.contains("ebb_source_errors_total{source=\"ebpf\",kind=\"rights\"} 1"), "{page}");
    for source in ["cpu", "memory", "cgroup"] {
        assert!(page.contains(&format!("ebb_source_up{{source=\"{source}\"}} 1")), "{page}");
    }
    let node = agent.serving.get("/api/v1/node").2;
    assert!(node.contains("without CAP_BPF and CAP_PERFMON: grant"), "{node}");
}

/// Before 5.11 the kernel takes maps for locked memory, of which a container may have too little.
fn needed() -> &'static [&'static str] {
    const CAPABILITIES: [&str; 3] = ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_RESOURCE"];
    if kernel() < (5, 11) { &CAPABILITIES } else { &CAPABILITIES[..2] }
}

struct Contained {
    serving: Serving,
    folder: tempfile::TempDir,
    /// Whether it has the right to count launches on every kernel.
    may_all: bool,
}

impl Contained {
    /// `None`, and the reason printed, where there is no runc or this user may not run it.
    fn start(uid: u32, capabilities: &[&str]) -> Option<Self> {
        if !Path::new("/usr/sbin/runc").exists() {
            eprintln!("not run: runc is not installed");
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            eprintln!("not run: only root makes containers without a user namespace");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("rootfs")).unwrap();
        fs::write(folder.path().join("config.json"), config(uid, capabilities).to_string()).unwrap();
        let mut runc = runc(folder.path());
        // No pivot: the root of a VM that runs from memory cannot be taken away.
        runc.args(["run", "--no-pivot", "--bundle"]).arg(folder.path());
        runc.arg("--pid-file").arg(folder.path().join("pid")).arg(name(folder.path()));
        let may_all = capabilities.contains(&"CAP_SYS_ADMIN");
        let agent = Self { serving: Serving::spawn(runc), folder, may_all };
        agent.serving.wait_ready();
        Some(agent)
    }

    fn measures_with_ebpf_and_keeps_nothing(&self) {
        let (page, node) = (self.serving.get("/metrics").2, self.serving.get("/api/v1/node").2);
        assert!(page.contains("ebb_source_up{source=\"ebpf\"} 1"), "{node}");
        let counts_launches = page.contains("ebb_source_up{source=\"cuda_launches\"} 1");
        assert!(counts_launches || !self.may_all && node.contains("the capability SYS_ADMIN"), "{node}");
        assert!(page.contains("ebb_cgroup_cpu_run_queue_seconds_total{cgroup="), "{page}");
        // Before 5.19 the kernel wants CAP_BPF for every look into a map, unless all of that is open to everybody.
        let is_open = fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").unwrap().trim() == "0";
        let kept = if kernel() < (5, 19) && !is_open { CAP_BPF } else { 0 };
        let pid = fs::read_to_string(self.folder.path().join("pid")).unwrap();
        let tasks: Vec<_> = fs::read_dir(format!("/proc/{}/task", pid.trim())).unwrap().collect();
        assert!(tasks.len() > 1, "the sampler has a thread of its own");
        for task in tasks {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let field = |name: &str| {
                let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
                u64::from_str_radix(value.unwrap(), 16).unwrap()
            };
            assert_eq!((field("CapEff"), field("CapPrm")), (kept, kept), "{status}");
            assert_eq!((field("CapInh"), field("CapAmb")), (0, 0), "{status}");
            assert_eq!((field("NoNewPrivs"), field("Seccomp")), (1, 2), "{status}");
        }
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        let _status = runc(self.folder.path()).args(["delete", "--force", &name(self.folder.path())]).status();
    }
}

/// Also that of its cgroup.
fn name(folder: &Path) -> String {
    format!("ebb-test-{}", folder.file_name().unwrap().to_string_lossy().trim_start_matches('.'))
}

fn runc(folder: &Path) -> Command {
    let mut runc = Command::new("/usr/sbin/runc");
    runc.arg("--root").arg(folder.join("state"));
    runc
}

/// As containerd would have it for the chart's securityContext.
fn config(uid: u32, capabilities: &[&str]) -> Value {
    let agent = Path::new(env!("CARGO_BIN_EXE_ebb-agent"));
    let bind = |from: &str, to: &str| json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", "ro", "nosuid", "nodev"]});
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
        bind("/sys/fs/cgroup", "/host/cgroup"),
        bind(agent.parent().unwrap().to_str().unwrap(), "/agent"),
    ];
    let libraries = ["/lib", "/lib64", "/usr/lib"].into_iter().filter(|folder| Path::new(folder).exists());
    mounts.extend(libraries.map(|folder| bind(folder, folder)));
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs", "readonly": true},
        "process": {
            "user": {"uid": uid, "gid": uid},
            "args": [
                "/agent/ebb-agent", "--standalone", "--listen", "127.0.0.1:0", "--log", "json",
                "--interval", "200ms", "--cgroup-root", "/host/cgroup", "--cuda-launches", "/agent/deps/libfake_cuda.so",
            ],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
                // Without them, capabilities end where a program starts that does not run as root.
                "inheritable": capabilities, "ambient": capabilities,
            },
            "noNewPrivileges": true,
        },
        "mounts": mounts,
        "linux": {
            // The network stays the machine's, so that the test can ask.
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    {"names": REFUSED, "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
                    {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                ],
            },
        },
    })
}

fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-', '+']).map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}
