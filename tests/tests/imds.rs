//! The agent on Amazon's own mock of EC2's instance metadata service, which answers nobody without a token: that what we
//! take for the service's protocol and documents is what they are. Faults are switched on in `agent/tests/imds.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ebb_tests::{MetadataMock, Program, binary, free_port, http, wait_until};
use serde_json::Value;

/// The agent asks once a second; this is for a machine that does other things as well.
const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_spot_instance_hears_of_its_interruption_and_of_its_risk() {
    let dir = folder("spot");
    let times = ["-t", "2126-11-28T13:02:00Z", "-r", "2126-11-28T13:00:00Z"];
    for action in ["terminate", "stop", "hibernate"] {
        let mock = MetadataMock::start(&dir, free_port(), &[&["spot", "-a", action], &times[..]].concat()).await;
        let agent = Agent::start(&dir, mock.port).await;
        agent.wait_for("ebb_notices{trigger=\"spot_interruption\"} 1").await;
        agent.wait_for("ebb_notices{trigger=\"rebalance\"} 1").await;
        agent.wait_for("ebb_notices{trigger=\"maintenance\"} 0").await;
        agent.wait_for("ebb_notices{trigger=\"lifecycle_hook\"} 0").await;
        agent.wait_for("ebb_source_up{source=\"imds\"} 1").await;
        let when = if action == "hibernate" { "now" } else { "at 2126-11-28T13:02:00.000Z" };
        let [spot] = &agent.said("notice", "spot_interruption")[..] else { panic!("{}", agent.program.log()) };
        assert_eq!(spot["because"], format!("spot interruption: {action} {when}"));
        let [rebalance] = &agent.said("notice", "rebalance")[..] else { panic!("{}", agent.program.log()) };
        assert_eq!(rebalance["deadline"], "2126-11-28T13:30:00.000Z");
    }
}

#[tokio::test]
async fn maintenance_is_known_until_it_is_cancelled_and_a_service_that_starts_anew_gives_new_tokens() {
    let dir = folder("maintenance");
    let event = ["events", "-o", "instance-retirement", "-b", "2126-11-28T14:00:00Z", "-a", "2126-11-28T16:00:00Z"];
    let mock = MetadataMock::start(&dir, free_port(), &event).await;
    let agent = Agent::start(&dir, mock.port).await;
    agent.wait_for("ebb_notices{trigger=\"maintenance\"} 1").await;
    let [said] = &agent.said("notice", "maintenance")[..] else { panic!("{}", agent.program.log()) };
    let because = "scheduled maintenance: instance-retirement not before 2126-11-28T14:00:00.000Z: \
                   The instance is scheduled for instance-retirement";
    assert_eq!(said["because"], because);

    let port = mock.port;
    mock.program.kill();
    agent.wait_for("ebb_source_up{source=\"imds\"} 0").await;
    assert!(!agent.page().await.contains("ebb_notices{trigger=\"maintenance\"}"), "what cannot be read is not known");
    let _cancelled = MetadataMock::start(&dir, port, &[&event[..], &["--state", "canceled"]].concat()).await;
    agent.wait_for("ebb_notices{trigger=\"maintenance\"} 0").await;
    agent.wait_for("ebb_imds_requests_total{document=\"token\",result=\"ok\"} 2").await;
    assert_eq!(agent.said("notice is gone", "maintenance").len(), 1, "{}", agent.program.log());
}

#[tokio::test]
async fn an_instance_hears_that_its_group_terminates_it() {
    let dir = folder("lifecycle");
    let in_service =
        MetadataMock::start(&dir, free_port(), &["asglifecycle", "--asg-termination-delay-sec", "86400"]).await;
    let port = in_service.port;
    let agent = Agent::start(&dir, port).await;
    agent.wait_for("ebb_notices{trigger=\"lifecycle_hook\"} 0").await;
    in_service.program.kill();
    let _terminated = MetadataMock::start(&dir, port, &["asglifecycle"]).await;
    agent.wait_for("ebb_notices{trigger=\"lifecycle_hook\"} 1").await;
    assert_eq!(agent.said("notice", "lifecycle_hook").len(), 1, "{}", agent.program.log());
}

struct Agent {
    port: u16,
    program: Program,
}

impl Agent {
    /// Returns when it serves.
    async fn start(dir: &Path, imds: u16) -> Self {
        let (port, log) = (free_port(), dir.join("agent.log"));
        let mut command = Command::new(binary("ebb-agent"));
        command.args(["--standalone", "--log", "json", "--imds-interval", "1s"]);
        command.args(["--listen", &local(port), "--imds-endpoint", &format!("http://{}", local(imds))]);
        // One log for each agent.
        let _none_yet = fs::remove_file(&log);
        let program = Program::start("ebb-agent", command, log);
        let listens = async || tokio::net::TcpStream::connect(local(port)).await.is_ok();
        wait_until("the agent to listen", SOON, listens, async || program.log()).await;
        Self { port, program }
    }

    async fn page(&self) -> String {
        http(&local(self.port), "GET", "/metrics", &[], "").await.1
    }

    /// For a line of its metrics, with a value in whole numbers.
    async fn wait_for(&self, line: &str) {
        let shown = async || self.page().await.lines().any(|of| of.strip_suffix(".0").unwrap_or(of) == line);
        wait_until(line, SOON, shown, async || self.program.log()).await;
    }

    /// The log's lines with this message about a trigger.
    fn said(&self, message: &str, trigger: &str) -> Vec<Value> {
        let log = self.program.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["message"] == message && line["trigger"] == trigger).collect()
    }
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn folder(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("imds").join(name);
    fs::create_dir_all(&dir).expect("cargo's folder takes folders");
    dir
}
