//! A node whose operating system is going down: the real systemd-logind on a message bus of its own, held up by a real
//! agent until its node on a real API server is drained. Who would end the system is a fake of ours: it is told to by
//! logind, and says that it could not.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ebb_core::drain::Node;
use ebb_core::intent::Trigger;
use ebb_tests::{Drains, Program, wait_until};
use serde_json::json;
use zbus::object_server::SignalEmitter;
use zbus::{ObjectPath, OwnedObjectPath};

const SOON: Duration = Duration::from_secs(120);
const MANAGER: &str = "/org/freedesktop/systemd1";
const JOB: &str = "/org/freedesktop/systemd1/job/1";

// busctl is waited for while our fake answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_system_that_goes_down_waits_for_its_drain_and_one_that_does_not_takes_its_node_back() {
    let drains = Drains::up().await;
    let name = "node-1";
    drains.make_nodes(&[name.to_owned()], None).await;
    let mut system = System::start().await;
    let token = drains.token(name).await;
    let bus = format!("--dbus-system-bus-address={}", system.address);
    let flags = ["--drain-on=shutdown".to_owned(), bus, "--imds-endpoint=none".to_owned()];
    let agent = drains.start_agent(name, &token, &drains.lab.server, &flags);
    wait_until(
        "the agent to hold the lock",
        SOON,
        async || system.inhibitors().contains("ebb-agent"),
        async || agent.log(),
    )
    .await;
    let pod = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "web"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "web", "image": "web"}]}}}});
    drains.lab.apply(&pod.to_string()).await;
    drains.lab.wait_until("the pod to run", SOON, async || drains.work_on(name).await.len() == 1).await;

    system.reboot();
    let told = async || system.systemd.started().is_some();
    wait_until("logind to let the system go down", SOON, told, async || agent.log()).await;
    assert_eq!(system.systemd.started().unwrap(), "reboot.target");
    let node = Node::from(&drains.node(name).await);
    assert!(node.drained && node.unschedulable, "it was told before: {node:?}\n{}", agent.log());
    assert_eq!(node.intent.unwrap().by, Trigger::Shutdown);
    assert_eq!(drains.work_on(name).await.len(), 0);
    assert!(!system.inhibitors().contains("ebb-agent"), "the lock was let go, not overrun");

    system.fail_to_go_down().await;
    drains
        .lab
        .wait_until("the node to be given back", SOON, async || Node::from(&drains.node(name).await) == Node::default())
        .await;
    wait_until(
        "the agent to hold the lock again",
        SOON,
        async || system.inhibitors().contains("ebb-agent"),
        async || agent.log(),
    )
    .await;
}

/// systemd-logind, its bus, and who it tells.
struct System {
    address: String,
    systemd: Systemd,
    connection: zbus::Connection,
    programs: Vec<Program>,
    _folder: tempfile::TempDir,
}

impl System {
    async fn start() -> Self {
        // A socket's path has 107 bytes at most.
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let socket = dir.join("bus");
        let address = format!("unix:path={}", socket.display());
        let mut bus = Command::new("dbus-daemon");
        bus.args(["--nofork", "--nopidfile", "--config-file"]).arg(bus_configuration(dir, &address));
        let bus = Program::start("dbus-daemon", bus, dir.join("bus.log"));
        wait_until("the bus", SOON, async || socket.exists(), async || bus.log()).await;

        let systemd = Systemd::default();
        let connection = zbus::connection::Builder::address(address.as_str())
            .name("org.freedesktop.systemd1")
            .serve_at(MANAGER, systemd.clone())
            .serve_at(format!("{MANAGER}/unit/reboot_2etarget"), RebootTarget)
            .build()
            .await
            .unwrap();

        // It writes to /run, which is its own here.
        let mut logind = Command::new("unshare");
        let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/logind.conf.d /run/user /run/udev \
                      && printf '[Login]\\nInhibitDelayMaxSec=100\\n' > /run/systemd/logind.conf.d/test.conf \
                      && exec /lib/systemd/systemd-logind";
        logind.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        logind.env("DBUS_SYSTEM_BUS_ADDRESS", &address);
        let logind = Program::start("systemd-logind", logind, dir.join("logind.log"));
        let system = Self { address, systemd, connection, programs: vec![bus, logind], _folder: folder };
        let answers = async || system.busctl(&["get-property"], &["InhibitDelayMaxUSec"]).starts_with("t 100000000");
        wait_until("systemd-logind", SOON, answers, async || system.programs[1].log()).await;
        system
    }

    fn busctl(&self, call: &[&str], words: &[&str]) -> String {
        let mut command = Command::new("busctl");
        command.arg(format!("--address={}", self.address)).args(call);
        command.args(["org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager"]);
        let output = command.args(words).output().expect("busctl starts");
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn inhibitors(&self) -> String {
        self.busctl(&["call"], &["ListInhibitors"])
    }

    /// As `systemctl reboot` does.
    fn reboot(&mut self) {
        let said = self.busctl(&["call"], &["RebootWithFlags", "t", "0"]);
        assert_eq!(said.trim(), "", "logind takes the order");
    }

    async fn fail_to_go_down(&self) {
        let emitter = SignalEmitter::new(&self.connection, MANAGER).unwrap();
        let job = JOB.try_into().unwrap();
        Systemd::job_removed(&emitter, 1, job, "reboot.target", "failed").await.unwrap();
    }
}

fn bus_configuration(dir: &Path, address: &str) -> PathBuf {
    let policy: String = ["send_type", "receive_type"]
        .iter()
        .flat_map(|way| {
            ["method_call", "method_return", "error", "signal"].map(|kind| format!(r#"<allow {way}="{kind}"/>"#))
        })
        .collect();
    let configuration = format!(
        r#"<busconfig><type>system</type><listen>{address}</listen><auth>EXTERNAL</auth>
           <policy context="default"><allow user="*"/><allow own="*"/>{policy}</policy></busconfig>"#
    );
    let path = dir.join("bus.conf");
    std::fs::write(&path, configuration).unwrap();
    path
}

/// A fake of systemd's manager, as far as logind asks it on the way down.
#[derive(Clone, Default)]
struct Systemd {
    started: Arc<Mutex<Option<String>>>,
}

impl Systemd {
    fn started(&self) -> Option<String> {
        self.started.lock().unwrap().clone()
    }
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn subscribe(&self) {}

    fn start_unit(&self, name: String, _mode: String) -> OwnedObjectPath {
        *self.started.lock().unwrap() = Some(name);
        JOB.try_into().unwrap()
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

struct RebootTarget;

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl RebootTarget {
    #[zbus(property)]
    fn load_state(&self) -> String {
        "loaded".to_owned()
    }
}
