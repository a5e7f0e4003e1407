//! What the command line says. A doc comment is the help text.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

use ebb_config::Overrides;
use ebb_core::units::parse_quantity_milli;

use crate::metrics_api::MetricsApi;

/// Grows and shrinks Auto Scaling groups with the work on a Kubernetes cluster
///
/// AWS is set up through the SDK's own environment: AWS_REGION, IRSA or Pod Identity, AWS_ENDPOINT_URL.
#[derive(Debug, Parser)]
#[command(name = "ebb-coordinator", version)]
pub struct Args {
    /// The configuration (groups and numbers)
    #[arg(long, env = "EBB_CONFIG", value_name = "FILE")]
    pub config: PathBuf,

    /// Read the configuration, say what is wrong with it, and do nothing else
    #[arg(long)]
    pub check_config: bool,

    #[command(flatten)]
    pub overrides: Overrides,

    /// Where to serve /metrics, /healthz, /readyz, the live page and /api/v1
    #[arg(long, env = "EBB_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:9484")]
    pub listen: SocketAddr,

    /// Where to take the agents' reports (gRPC over TLS)
    #[arg(long, env = "EBB_LISTEN_REPORTS", value_name = "ADDR", default_value = "0.0.0.0:9483")]
    pub listen_reports: SocketAddr,

    /// Where to answer the API server about agents' evictions (HTTPS), where agents act as themselves: the webhook of
    /// the chart's value `agent.rights: admission`
    #[arg(long, env = "EBB_LISTEN_ADMISSION", value_name = "ADDR")]
    pub listen_admission: Option<SocketAddr>,

    /// Where to write for agents that may not write themselves (HTTPS): the chart's value `agent.rights: brokered`
    #[arg(long, env = "EBB_LISTEN_BROKER", value_name = "ADDR")]
    pub listen_broker: Option<SocketAddr>,

    /// Where to serve metrics to the API server (HTTPS): the chart's values `metricsApi.enabled` and
    /// `customMetricsApi.enabled`
    #[arg(long, env = "EBB_LISTEN_METRICS_API", value_name = "ADDR")]
    pub listen_metrics_api: Option<SocketAddr>,

    /// Which APIs are served there: metrics.k8s.io in place of metrics-server, custom.metrics.k8s.io in place of an
    /// adapter of Prometheus
    #[arg(
        long,
        env = "EBB_METRICS_APIS",
        value_name = "GROUP",
        value_delimiter = ',',
        default_value = "metrics.k8s.io"
    )]
    pub metrics_apis: Vec<MetricsApi>,

    /// A kubeconfig, where the coordinator does not run in the cluster
    #[arg(long, env = "EBB_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The namespace of the Lease, the certificate and the agents [default: the pod's own, else ebb]
    #[arg(long, env = "EBB_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,

    /// This replica's name in the Lease, different from all others' [default: the host's, which is the pod's]
    #[arg(long, env = "EBB_IDENTITY", value_name = "NAME")]
    pub identity: Option<String>,

    /// The ServiceAccount that agents run as, in the same namespace
    #[arg(long, env = "EBB_AGENT_SERVICE_ACCOUNT", value_name = "NAME", default_value = "ebb-agent")]
    pub agent_service_account: String,

    /// A further name that agents may reach the coordinator by; may be given more than once
    #[arg(long, env = "EBB_TLS_SAN", value_name = "NAME", value_delimiter = ',')]
    pub tls_san: Vec<String>,

    /// Append every event and what was decided on it to this file, for `ebb replay`
    #[arg(long, env = "EBB_RECORD", value_name = "FILE")]
    pub record: Option<PathBuf>,

    /// How large that file may become (a thousand nodes fill 256Mi in some two hours); then it is FILE.1, in place of an
    /// earlier one, and the next one begins
    #[arg(long, env = "EBB_RECORD_MAX_SIZE", value_name = "SIZE", default_value = "256Mi", value_parser = parse_bytes)]
    pub record_max_size: u64,

    /// Also serve the metrics that have a like in Cluster Autoscaler under its names, for dashboards that there are
    #[arg(long, env = "EBB_CLUSTER_AUTOSCALER_METRICS")]
    pub cluster_autoscaler_metrics: bool,

    /// How log lines look
    #[arg(long, env = "EBB_LOG", value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub log: LogFormat,

    /// What to log: a level, or directives as in `info,ebb_coordinator=debug`
    #[arg(long, env = "EBB_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
}

fn parse_bytes(text: &str) -> Result<u64, String> {
    let milli = parse_quantity_milli(text).map_err(|error| error.to_string())?;
    match u64::try_from(milli.div_ceil(1000)) {
        Ok(bytes) if bytes > 0 => Ok(bytes),
        _ => Err("expected a size above zero, as in 256Mi".to_owned()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}
