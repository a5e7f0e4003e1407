//! The agent under Debian's own Prometheus: what it scrapes is what we wrote, and its linter has nothing to say.
//! `cargo xtask test prometheus` installs it; the agent needs no rights here, and shows less without them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use ebb_tests::{Program, binary, free_port, http, wait_until};
use serde_json::Value;

/// Scrapes come once a second; this is for a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn rates_of_this_machine_add_up() {
    let dir = folder("rates");
    let agent = Agent::start(&dir, &["--interval", "200ms"]).await;
    let prometheus = Prometheus::start(&dir, &[("agent", agent.port)]).await;

    // Each CPU does one thing at a time. Its modes are read in ticks of 10 ms, up to 200 ms before the scrape.
    let modes = "sum by (cpu) (rate(ebb_node_cpu_seconds_total[10s]))";
    prometheus.wait_for("ten seconds of scrapes", "count_over_time(up[1m]) >= bool 10", |sum| sum == 1.0).await;
    let cpus = prometheus.query(modes).await;
    assert!(!cpus.is_empty());
    for (labels, rate) in &cpus {
        assert!((0.85..1.15).contains(rate), "{labels:?} spends {rate} s a second");
    }
    // The node's own counter of switches against the same file, read by us.
    let switches = || {
        let stat = fs::read_to_string("/proc/stat").expect("this machine has /proc");
        let line = stat.lines().find_map(|line| line.strip_prefix("ctxt ")).expect("it counts switches");
        line.parse::<f64>().expect("in figures")
    };
    let before = switches();
    let scraped = prometheus.one("ebb_node_context_switches_total").await;
    assert!(scraped <= switches() && scraped > 0.5 * before, "{scraped} of {before}");
    prometheus.assert_healthy().await;
}

#[tokio::test]
async fn what_we_write_is_what_prometheus_has() {
    let dir = folder("constant");
    let odd = "a \"quoted\" back\\slash,\nnew={line} é";
    tree(
        &dir,
        &[
            ("proc/stat", "cpu  300 1 2 3 4 5 6 7 0 0\ncpu0 300 1 2 3 4 5 6 7 0 0\nctxt 9007199254740991\n"),
            ("proc/meminfo", "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 500 kB\nInactive(file): 100 kB\n"),
            ("cgroup/cgroup.controllers", "cpu\n"),
            (&format!("cgroup/{odd}/cpu.stat"), "usage_usec 1\n"),
            (&format!("cgroup/{odd}/memory.current"), "18446744073709551615\n"),
        ],
    );
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (proc, sys, cgroup) = (at("proc"), at("sys"), at("cgroup"));
    let agent = Agent::start(&dir, &["--proc-root", &proc, "--sys-root", &sys, "--cgroup-root", &cgroup]).await;
    // Prometheus asks for OpenMetrics; what asks for nothing gets the classic format, and Prometheus gets that from it.
    let classic = relay(agent.port).await;
    let prometheus = Prometheus::start(&dir, &[("open", agent.port), ("classic", classic)]).await;

    for job in ["open", "classic"] {
        let of = |name: &str| format!("{name}{{job=\"{job}\"}}");
        prometheus.wait_for("a scrape", &of("ebb_node_context_switches_total"), |_| true).await;
        let check = async |name: &str, label: (&str, &str), expected: f64| {
            let found = prometheus.query(&of(name)).await;
            let (key, wanted) = label;
            let row = found.iter().find(|(labels, _)| labels.get(key).is_some_and(|value| value == wanted));
            assert_eq!(row.map(|(_, value)| *value), Some(expected), "{name} {label:?} of {job}: {found:?}");
        };
        let cgroup = format!("/{odd}");
        check("ebb_node_cpu_seconds_total", ("mode", "user"), 3.0).await;
        check("ebb_node_cpu_seconds_total", ("mode", "steal"), 0.07).await;
        check("ebb_node_context_switches_total", ("job", job), 9_007_199_254_740_991.0).await;
        check("ebb_node_memory_total_bytes", ("job", job), 1_024_000.0).await;
        check("ebb_source_up", ("source", "cpu"), 1.0).await;
        check("ebb_source_up", ("source", "pressure"), 0.0).await;
        check("ebb_cgroup_cpu_seconds_total", ("cgroup", &cgroup), 0.000_001).await;
        check("ebb_cgroup_memory_bytes", ("cgroup", &cgroup), u64::MAX as f64).await;
        // All samples that we wrote, no more and no less.
        let page = agent.page().await;
        let written = page.lines().filter(|line| !line.starts_with('#')).count() as f64;
        check("scrape_samples_scraped", ("job", job), written).await;
        check("scrape_samples_post_metric_relabeling", ("job", job), written).await;
    }
    // Only OpenMetrics has a counter's name without `_total`.
    let metadata = prometheus.get("/api/v1/targets/metadata?metric=ebb_node_cpu_seconds").await;
    let jobs: Vec<_> = metadata.as_array().expect("a list").iter().map(|of| of["target"]["job"].as_str()).collect();
    assert_eq!(jobs, [Some("open")], "{metadata}");
    prometheus.assert_healthy().await;
}

#[tokio::test]
async fn promtool_has_nothing_to_say() {
    let dir = folder("promtool");
    let agent = Agent::start(&dir, &[]).await;
    let page = agent.page().await;
    let mut promtool = Command::new("promtool");
    let promtool = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = promtool.stderr(Stdio::piped()).spawn().expect("promtool is installed");
    child.stdin.take().expect("was asked for").write_all(page.as_bytes()).expect("promtool reads");
    let output = child.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}\n{page}", String::from_utf8_lossy(&said));
}

struct Agent {
    port: u16,
    _program: Program,
}

impl Agent {
    /// Returns when it has figures.
    async fn start(dir: &Path, args: &[&str]) -> Self {
        let port = free_port();
        let mut command = Command::new(binary("ebb-agent"));
        command.args(["--standalone", "--listen", &format!("127.0.0.1:{port}")]).args(args);
        let program = Program::start("ebb-agent", command, dir.join("agent.log"));
        let agent = Self { port, _program: program };
        let ready = async || is_up(port).await && http(&local(port), "GET", "/readyz", &[], "").await.0 == 200;
        wait_until("the agent's first sample", PATIENCE, ready, async || read(&dir.join("agent.log"))).await;
        agent
    }

    async fn page(&self) -> String {
        let (status, page) = http(&local(self.port), "GET", "/metrics", &[], "").await;
        assert_eq!(status, 200);
        page
    }
}

/// Serves at another port what the agent serves to those that name no format.
async fn relay(agent: u16) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let port = listener.local_addr().expect("a listener has an address").port();
    let page = move || async move {
        let (_, page) = http(&local(agent), "GET", "/metrics", &[], "").await;
        ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page)
    };
    let router = axum::Router::new().route("/metrics", axum::routing::get(page));
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

struct Prometheus {
    port: u16,
    program: Program,
}

impl Prometheus {
    /// Scrapes ports of this machine once a second, as jobs.
    async fn start(dir: &Path, jobs: &[(&str, u16)]) -> Self {
        let port = free_port();
        let mut config = "global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n".to_owned();
        for (job, port) in jobs {
            config += &format!("- {{job_name: {job}, static_configs: [{{targets: [\"127.0.0.1:{port}\"]}}]}}\n");
        }
        fs::write(dir.join("prometheus.yml"), config).expect("the folder takes files");
        let mut command = Command::new("prometheus");
        command.current_dir(dir).args(["--config.file=prometheus.yml", "--storage.tsdb.path=data"]);
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let program = Program::start("prometheus", command, dir.join("prometheus.log"));
        let prometheus = Self { port, program };
        let ready = async || is_up(port).await && http(&local(port), "GET", "/-/ready", &[], "").await.0 == 200;
        wait_until("Prometheus to be ready", PATIENCE, ready, async || prometheus.program.log()).await;
        prometheus
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = http(&local(self.port), "GET", path, &[], "").await;
        assert_eq!(status, 200, "{path}: {body}");
        let mut reply: Value = serde_json::from_str(&body).expect("Prometheus answers JSON");
        reply["data"].take()
    }

    /// The latest value of each series, with its labels.
    async fn query(&self, expression: &str) -> Vec<(BTreeMap<String, String>, f64)> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let result = self.get(&format!("/api/v1/query?query={encoded}")).await["result"].take();
        let rows = result.as_array().expect("a vector").iter();
        rows.map(|row| {
            let labels = serde_json::from_value(row["metric"].clone()).expect("labels are text");
            (labels, row["value"][1].as_str().and_then(|value| value.parse().ok()).expect("a value"))
        })
        .collect()
    }

    async fn one(&self, expression: &str) -> f64 {
        let rows = self.query(expression).await;
        let [(_, value)] = rows[..] else { panic!("{expression} is {rows:?}") };
        value
    }

    async fn wait_for(&self, what: &str, expression: &str, is_good: impl Fn(f64) -> bool) {
        let condition = async || self.query(expression).await.first().is_some_and(|(_, value)| is_good(*value));
        let diagnosis = async || format!("{}\n{}", self.get("/api/v1/targets").await, self.program.log());
        wait_until(what, PATIENCE, condition, diagnosis).await;
    }

    /// Every scrape so far was good, and its samples were taken as they came.
    async fn assert_healthy(&self) {
        let targets = self.get("/api/v1/targets").await;
        for target in targets["activeTargets"].as_array().expect("a list") {
            assert_eq!((&target["health"], &target["lastError"]), (&"up".into(), &"".into()), "{target}");
        }
        for (labels, up) in self.query("min_over_time(up[5m])").await {
            assert_eq!(up, 1.0, "{labels:?}");
        }
        let log = self.program.log();
        let complaint = log.lines().find(|line| line.contains("level=warn") || line.contains("level=error"));
        assert_eq!(complaint, None);
    }
}

/// Nobody listens at the port until its program is up; [`http`] takes that for a failure.
async fn is_up(port: u16) -> bool {
    tokio::net::TcpStream::connect(local(port)).await.is_ok()
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// An empty folder for a test.
fn folder(name: &str) -> std::path::PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prometheus").join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).expect("the last run's folder goes");
    }
    fs::create_dir_all(&dir).expect("a folder can be made");
    dir
}

fn tree(root: &Path, files: &[(&str, &str)]) {
    for (path, content) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("below the root")).expect("a folder can be made");
        fs::write(path, content).expect("a folder takes files");
    }
}
