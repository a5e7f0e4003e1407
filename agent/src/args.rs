//! The command line. What does not parse here is refused before anything starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use ebb_core::notice;
use ebb_core::time::{parse_duration, parse_duration_within};
use ebb_core::xid::Policy;
use tracing_subscriber::filter::Targets;

use crate::cluster::Rights;
use crate::gpus::Settings;
use crate::host::Roots;
use crate::logging::{self, Format};
use crate::metrics::HostnameLabel;
use crate::source::imds::{Endpoint, ImdsArg};
use crate::uplink::CoordinatorUrl;

/// Watches one node: samples its CPUs, memory and GPUs, says whether it is busy or idle, serves metrics, reports to
/// the coordinator, and drains its own node when asked to.
#[derive(Clone, Debug, Parser)]
#[command(name = "ebb-agent", version, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Take one sample, over one interval, print it and end
    #[arg(long)]
    pub once: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table", requires = "once")]
    pub output: Output,

    /// Where to serve /metrics, /api/v1/node, /healthz, /readyz and, to this machine only, PUT /log-level
    #[arg(long, env = "EBB_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:9482")]
    pub listen: SocketAddr,
    /// Neither Kubernetes nor a coordinator: sample and serve metrics only
    #[arg(long, env = "EBB_STANDALONE")]
    pub standalone: bool,
    /// The name of this machine's Node object
    #[arg(
        long, env = "EBB_NODE_NAME", value_name = "NAME", value_parser = parse_node_name,
        required_unless_present_any = ["standalone", "once"]
    )]
    pub node_name: Option<String>,
    /// How to reach the API server [default: as a pod in the cluster]
    #[arg(long, env = "EBB_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// What holds the agent to its own node, which is what it acts as at the API server
    #[arg(long, env = "EBB_RIGHTS", value_name = "HOW", value_enum, default_value = "impersonation")]
    pub rights: Rights,

    /// Where to report
    #[arg(long, env = "EBB_COORDINATOR", value_name = "URL", default_value = "https://ebb-coordinator.ebb.svc:9483")]
    pub coordinator: CoordinatorUrl,
    /// Certificates that the coordinator's must lead to, in PEM; read again for every connection
    #[arg(long, env = "EBB_COORDINATOR_CA", value_name = "FILE", default_value = "/var/run/ebb/ca/ca.crt")]
    pub coordinator_ca: PathBuf,
    /// The name that the coordinator's certificate must carry [default: the URL's host]
    #[arg(long, env = "EBB_COORDINATOR_SERVER_NAME", value_name = "NAME")]
    pub coordinator_server_name: Option<String>,
    /// A token of this pod's ServiceAccount with audience `ebb-coordinator`; read again for every stream
    #[arg(long, env = "EBB_COORDINATOR_TOKEN_FILE", value_name = "FILE", default_value = "/var/run/ebb/token/token")]
    pub coordinator_token_file: PathBuf,

    /// Where the coordinator writes for the agent, with `--rights brokered`
    #[arg(long, env = "EBB_BROKER", value_name = "URL", default_value = "https://ebb-coordinator.ebb.svc:9486")]
    pub broker: CoordinatorUrl,
    /// A token of this pod's ServiceAccount with audience `ebb-broker`, for that; read again each minute
    #[arg(long, env = "EBB_BROKER_TOKEN_FILE", value_name = "FILE", default_value = "/var/run/ebb/broker/token")]
    pub broker_token_file: PathBuf,

    #[command(flatten)]
    pub drain: DrainArgs,

    /// How often to sample, from 100ms to 10s
    #[arg(long, global = true, env = "EBB_INTERVAL", value_name = "DURATION", default_value = "1s", value_parser = parse_interval)]
    pub interval: Duration,
    /// How often to read the cgroups of pods, and all others, from 1s to 1m
    #[arg(
        long, global = true, env = "EBB_POD_INTERVAL", value_name = "DURATION", default_value = "10s",
        value_parser = parse_seconds_interval
    )]
    pub pod_interval: Duration,
    /// Where readings come from: `host`, or `replay:FILE` with lines of JSON such as
    /// {"for": "30s", "utilization": {"cpu": 100, "gpu": "absent"}}; the last one holds for ever
    #[arg(long, env = "EBB_SOURCE", default_value = "host", value_parser = parse_source)]
    pub source: SourceArg,
    /// Where the host's /proc is
    #[arg(long, global = true, env = "EBB_PROC_ROOT", value_name = "DIR", default_value = "/proc")]
    pub proc_root: PathBuf,
    /// Where the host's cgroups are
    #[arg(long, global = true, env = "EBB_CGROUP_ROOT", value_name = "DIR", default_value = "/sys/fs/cgroup")]
    pub cgroup_root: PathBuf,
    /// Where the kubelet says which container has which devices
    #[arg(
        long,
        env = "EBB_POD_RESOURCES_SOCKET",
        value_name = "FILE",
        default_value = "/var/lib/kubelet/pod-resources/kubelet.sock"
    )]
    pub pod_resources_socket: PathBuf,
    /// Where the host's /sys is
    #[arg(long, global = true, env = "EBB_SYS_ROOT", value_name = "DIR", default_value = "/sys")]
    pub sys_root: PathBuf,
    /// How many cgroups to follow; the deepest are left out
    #[arg(
        long, global = true, env = "EBB_MAX_CGROUPS", value_name = "COUNT", default_value = "1024",
        value_parser = clap::value_parser!(u32).range(1..=65_536)
    )]
    pub max_cgroups: u32,

    /// Where EC2's instance metadata service is (version 2), which tells of spot interruptions, maintenance and more: as
    /// http://169.254.169.254, or `none` [default: that address; none
    /// with --standalone or a recording]
    #[arg(long, env = "EBB_IMDS_ENDPOINT", value_name = "URL")]
    pub imds_endpoint: Option<ImdsArg>,
    /// How often to ask it, from 1s to 1m. A spot interruption is announced two minutes ahead
    #[arg(
        long, env = "EBB_IMDS_INTERVAL", value_name = "DURATION", default_value = "5s", value_parser = parse_seconds_interval
    )]
    pub imds_interval: Duration,

    /// NVML's library [default: libnvidia-ml.so.1, where there is an NVIDIA GPU on the PCI bus]
    #[arg(long, env = "EBB_NVML_LIBRARY", value_name = "FILE")]
    pub nvml_library: Option<PathBuf>,
    /// Count each container's launches of CUDA kernels, by probes in this libcuda.so.1, which must be the very file that
    /// containers map. A launch then costs two traps into the kernel: microseconds, in some VMs tens of them. Needs
    /// the capability SYS_ADMIN at the start. Who launches nothing need not be idle: kernels may run for long
    #[arg(long, env = "EBB_CUDA_LAUNCHES", value_name = "FILE")]
    pub cuda_launches: Option<PathBuf>,
    /// The kernel's log, where NVIDIA's driver writes its XIDs
    #[arg(long, env = "EBB_KMSG", value_name = "FILE", default_value = "/dev/kmsg")]
    pub kmsg: PathBuf,
    /// What each XID asks of the node, in the place of the built-in table (core/src/xid/policy.csv)
    #[arg(long, env = "EBB_XID_POLICY", value_name = "FILE", value_parser = parse_xid_policy)]
    pub xid_policy: Option<Policy>,

    /// Also serve /compat/dcgm: the GPUs under dcgm-exporter's names
    #[arg(long, env = "EBB_SERVE_DCGM")]
    pub serve_dcgm: bool,
    /// How the label of the node's name is written there: older rules look for `Hostname`
    #[arg(
        long,
        env = "EBB_DCGM_HOSTNAME_LABEL",
        value_name = "LABEL",
        value_enum,
        default_value = "hostname",
        requires = "serve_dcgm"
    )]
    pub dcgm_hostname_label: HostnameLabel,

    /// Also serve /metrics/resource: CPU and memory of node, pods and containers, as the kubelet's endpoint of that name
    #[arg(long, env = "EBB_SERVE_RESOURCE_METRICS")]
    pub serve_resource_metrics: bool,

    /// How log lines look
    #[arg(long, global = true, env = "EBB_LOG", value_enum, default_value = "text")]
    pub log: Format,
    /// What is logged: a level, or `info,kube=debug`
    #[arg(
        long, global = true, env = "EBB_LOG_LEVEL", value_name = "FILTER", default_value = "info",
        value_parser = logging::parse_filter
    )]
    pub log_level: Targets,
}

/// How this node is drained.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Drain")]
pub struct DrainArgs {
    /// Hooks of drains: programs and services, with their phases
    #[arg(long, env = "EBB_HOOKS_FILE", value_name = "FILE")]
    pub hooks_file: Option<PathBuf>,
    /// More hooks: the programs in `DIR/PHASE.d`, in the order of their names
    #[arg(long, env = "EBB_HOOKS_DIR", value_name = "DIR")]
    pub hooks_dir: Option<PathBuf>,
    /// How long load balancers get to forget the node before it is cordoned
    #[arg(
        long, env = "EBB_LEAVE_LOAD_BALANCERS", value_name = "DURATION", default_value = "0s",
        value_parser = parse_duration
    )]
    pub leave_load_balancers: Duration,
    /// Whose word that the node will go begins a drain; all are shown in the metrics
    #[arg(
        long,
        env = "EBB_DRAIN_ON",
        value_name = "NOTICE",
        value_enum,
        value_delimiter = ',',
        default_value = "spot-interruption,maintenance,lifecycle-hook"
    )]
    pub drain_on: Vec<DrainOn>,
    /// The system's message bus, where systemd-logind tells of a shutdown; for `--drain-on=shutdown`
    #[arg(
        long, env = "DBUS_SYSTEM_BUS_ADDRESS", value_name = "ADDRESS", default_value = "unix:path=/run/dbus/system_bus_socket",
        value_parser = parse_bus_address
    )]
    pub dbus_system_bus_address: String,
}

/// What the agent hears of its node's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DrainOn {
    /// A GPU must be reset, or the machine restarted for it: what works on the others goes, too.
    GpuRecovery,
    /// The Auto Scaling group is terminating the instance.
    LifecycleHook,
    /// AWS has announced an event for the instance; from an hour before it.
    Maintenance,
    /// Nothing, where it stands alone.
    None,
    /// AWS sees a higher risk of a spot interruption: most such nodes go on working.
    Rebalance,
    /// The operating system is going down: systemd-logind is asked to wait for the drain.
    Shutdown,
    /// AWS reclaims the spot instance, usually in two minutes.
    SpotInterruption,
}

impl DrainArgs {
    pub fn notices(&self) -> notice::Policy {
        let on = |it| self.drain_on.contains(&it);
        notice::Policy {
            gpu_recovery: on(DrainOn::GpuRecovery),
            lifecycle_hook: on(DrainOn::LifecycleHook),
            maintenance: on(DrainOn::Maintenance),
            rebalance: on(DrainOn::Rebalance),
            shutdown: on(DrainOn::Shutdown),
            spot_interruption: on(DrainOn::SpotInterruption),
            ..notice::Policy::default()
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Write what this machine does to a file, a line for each sample, for `ebb classify` and `--source replay:FILE`
    Record(Record),
}

#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Record {
    /// Where to write; an existing file is left alone. `-`: the standard output
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// When to end [default: when it is interrupted]
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    pub lasts: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceArg {
    Host,
    Replay(PathBuf),
}

impl Args {
    pub fn roots(&self) -> Roots {
        Roots {
            proc: self.proc_root.clone(),
            sys: self.sys_root.clone(),
            cgroup: self.cgroup_root.clone(),
            max_cgroups: self.max_cgroups,
            pod_interval: if self.once { Duration::ZERO } else { self.pod_interval },
            libcuda: self.cuda_launches.clone(),
        }
    }

    /// Where to ask for instance metadata. Not by itself where nobody drains this machine, nor for a recording, which is
    /// shown with nothing of this machine in it.
    pub fn imds(&self) -> Option<Endpoint> {
        match &self.imds_endpoint {
            Some(ImdsArg::Endpoint(endpoint)) => Some(endpoint.clone()),
            Some(ImdsArg::None) => None,
            None => (!self.standalone && self.source == SourceArg::Host).then(Endpoint::default),
        }
    }

    /// Where to be told of a shutdown; a node that nobody drains is not held up.
    pub fn logind(&self) -> Option<String> {
        let drains = !self.standalone && self.drain.drain_on.contains(&DrainOn::Shutdown);
        drains.then(|| self.drain.dbus_system_bus_address.clone())
    }

    pub fn gpus(&self) -> Settings {
        Settings {
            library: self.nvml_library.clone(),
            kmsg: self.kmsg.clone(),
            policy: self.xid_policy.clone().unwrap_or_default(),
        }
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    // Longer than a report may be old, and the coordinator would take the node for lost.
    parse_duration_within(text, Duration::from_millis(100)..=Duration::from_secs(10), "100ms to 10s")
}

/// Of cgroups: the kubelet reads them every 10 s, and Prometheus scrapes once or twice a minute. Of instance metadata: AWS
/// advises 5 s.
fn parse_seconds_interval(text: &str) -> Result<Duration, String> {
    parse_duration_within(text, Duration::from_secs(1)..=Duration::from_secs(60), "1s to 1m")
}

fn parse_bus_address(text: &str) -> Result<String, String> {
    let expected = "expected an address as D-Bus writes it, such as unix:path=/run/dbus/system_bus_socket";
    text.parse::<zbus::Address>().map(|_| text.to_owned()).map_err(|error| format!("{error}; {expected}"))
}

fn parse_xid_policy(file: &str) -> Result<Policy, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("read it: {error}"))?;
    Policy::parse(&text).map_err(|error| error.to_string())
}

fn parse_source(text: &str) -> Result<SourceArg, String> {
    match text.split_once(':') {
        None if text == "host" => Ok(SourceArg::Host),
        Some(("replay", file)) if !file.is_empty() => Ok(SourceArg::Replay(file.into())),
        _ => Err("expected `host` or `replay:FILE`".into()),
    }
}

/// As Kubernetes has it (RFC 1123). It becomes part of a user name and of selectors.
fn parse_node_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !label.is_empty() && label.chars().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("expected the name of a Node: lower-case letters, digits, `-` and `.`".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, String> {
        Args::try_parse_from([&["ebb-agent"], args].concat()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_holds_together() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_was_expected() {
        let check = |args: &[&str], expected: &str| {
            let error = parse(args).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(&[], "--node-name");
        check(&["--node-name", "UPPER"], "the name of a Node");
        check(&["--node-name", "a/../b"], "the name of a Node");
        check(&["--standalone", "--interval", "1"], "30s, 10m");
        check(&["--standalone", "--interval", "1m"], "100ms to 10s");
        check(&["--standalone", "--pod-interval", "100ms"], "1s to 1m");
        check(&["--standalone", "--imds-endpoint", "169.254.169.254"], "http://HOST");
        check(&["--standalone", "--imds-interval", "5m"], "1s to 1m");
        check(&["--node-name", "a", "--dbus-system-bus-address", "/run/dbus"], "unix:path=");
        check(&["--standalone", "--source", "gpu"], "`host` or `replay:FILE`");
        check(&["--standalone", "--max-cgroups", "0"], "1..=65536");
        check(&["--standalone", "--listen", "9482"], "--listen");
        check(&["--standalone", "--log-level", "loud"], "off, error, warn");
        check(&["--standalone", "--output", "json"], "--once");
        check(&["--node-name", "a", "--coordinator", "http://example.com:1"], "https://");
    }

    #[test]
    fn defaults_are_those_of_a_pod_on_a_node() {
        let args = parse(&["record", "-o", "f", "--for", "1m", "--interval", "2s"]).unwrap();
        assert_eq!(args.interval, Duration::from_secs(2), "needs neither a node's name nor --standalone");
        let args = parse(&["--node-name", "ip-10-0-0-1.ec2.internal"]).unwrap();
        assert_eq!(args.listen.port(), 9482);
        assert_eq!(args.interval, Duration::from_secs(1));
        assert_eq!(args.source, SourceArg::Host);
        assert_eq!(args.imds(), Some(Endpoint::default()));
        let none = |args: &[&str]| assert_eq!(parse(args).unwrap().imds(), None, "{args:?}");
        none(&["--standalone"]);
        none(&["--node-name", "a", "--imds-endpoint", "none"]);
        none(&["--node-name", "a", "--source", "replay:file"]);
    }
}
