//! The lab's AWS (`tests/fake-aws`) as a test sees it: what was called, what the groups hold, and what is to go wrong.

use std::collections::BTreeMap;

use aws_sdk_autoscaling::Client;
use aws_sdk_autoscaling::config::retry::RetryConfig;
use aws_sdk_autoscaling::config::{BehaviorVersion, Credentials, Region};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use serde::Deserialize;
use serde_json::Value;

use crate::Lab;

/// One call of the AWS API, as the lab logged it.
#[derive(Clone, Debug, Deserialize)]
pub struct AwsCall {
    /// Unix time in milliseconds when it arrived.
    #[serde(rename = "t")]
    pub at_ms: u64,
    pub service: String,
    pub action: String,
    pub params: BTreeMap<String, String>,
    /// 0 where the connection was closed instead.
    pub status: u16,
    /// How long the answer took.
    #[serde(rename = "ms")]
    pub took_ms: u64,
    /// Whether a fault of [`Lab::set_faults`] had a hand in it.
    pub fault: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Group {
    pub name: String,
    pub min: u32,
    pub max: u32,
    pub desired: u32,
    pub instances: Vec<Instance>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Instance {
    pub id: String,
    pub state: String,
    #[serde(rename = "type")]
    pub instance_type: String,
    pub zone: String,
    /// `OnDemand` or `Spot`.
    pub market: String,
    pub ip: String,
    /// The name of its Node, whether that exists yet or not.
    pub node: String,
}

impl Lab {
    /// The AWS SDK, for the lab's Auto Scaling API.
    pub fn autoscaling(&self) -> Client {
        let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
        let config = aws_sdk_autoscaling::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .credentials_provider(Credentials::new("lab", "lab", None, None, "lab"))
            .endpoint_url(&self.aws_endpoint)
            .http_client(http.build_https())
            .region(Region::new(self.region.clone()))
            .retry_config(RetryConfig::disabled());
        Client::from_conf(config.build())
    }

    /// The calls of one action so far, in the order of their answers.
    pub fn aws_calls(&self, action: &str) -> Vec<AwsCall> {
        let log = std::fs::read_to_string(&self.aws_log).expect("the fake AWS has a log");
        // The last line may be half written.
        let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let calls = lines.map(|line| serde_json::from_str::<AwsCall>(line).expect("each line is a call"));
        calls.filter(|call| call.action == action).collect()
    }

    /// All groups as they are now.
    pub async fn asg(&self) -> Vec<Group> {
        let (_, body) = self.http("GET", "/_lab/asg", &[], "").await;
        serde_json::from_str(&body).expect("the view of the groups is JSON")
    }

    /// One group as it is now.
    pub async fn group(&self, name: &str) -> Group {
        self.asg().await.into_iter().find(|group| group.name == name).unwrap_or_else(|| panic!("no group {name}"))
    }

    /// Sets what goes wrong from now on, for instance
    /// `json!([{"action": "SetDesiredCapacity", "code": "Throttling", "status": 400, "times": 3}])`,
    /// `json!([{"delay_ms": 2000}])`, or `json!([{"action": "Launch", "code": "InsufficientInstanceCapacity"}])`;
    /// `fake_aws::faults::Rule` has all of it. An empty list ends all faults.
    pub async fn set_faults(&self, faults: &Value) {
        let (status, body) = self.http("POST", "/_lab/faults", &[], &faults.to_string()).await;
        assert_eq!(status, 200, "set faults: {body}");
    }

    /// Sets how long AWS takes for things from now on: `json!({"launch_ms": 2000})` until an instance is InService;
    /// `fake_aws::service::Timing` has all of it.
    pub async fn set_timing(&self, timing: &Value) {
        let (status, body) = self.http("POST", "/_lab/timing", &[], &timing.to_string()).await;
        assert_eq!(status, 200, "set the timing: {body}");
    }

    /// Takes an instance away as EC2 does: Spot capacity that is reclaimed, a host that broke.
    pub async fn lose_instance(&self, id: &str) {
        let (status, body) = self.http("DELETE", &format!("/_lab/instances/{id}"), &[], "").await;
        assert_eq!(status, 200, "lose instance {id}: {body}");
    }

    /// One call of the Auto Scaling API as somebody else in the account would make it; status and XML of the answer.
    pub async fn aws(&self, action: &str, params: &[(&str, &str)]) -> (u16, String) {
        let mut body = format!("Action={action}&Version=2011-01-01");
        for (name, value) in params {
            body += &format!("&{name}={value}");
        }
        // The fake reads region and service from the signature and does not check it.
        let scope = format!("lab/20260101/{}/autoscaling/aws4_request", self.region);
        let signature = format!("AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0");
        let headers = [("Authorization", signature.as_str()), ("Content-Type", "application/x-www-form-urlencoded")];
        self.http("POST", "/", &headers, &body).await
    }

    /// Sets a group's desired capacity as a person with the AWS console would.
    pub async fn set_desired(&self, group: &str, desired: u32) {
        let desired = desired.to_string();
        let (status, body) =
            self.aws("SetDesiredCapacity", &[("AutoScalingGroupName", group), ("DesiredCapacity", &desired)]).await;
        assert_eq!(status, 200, "set the desired capacity of {group}: {body}");
    }

    /// HTTP/1.0: the answer ends with the connection, so that a few lines do for a client.
    async fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let address = self.aws_endpoint.strip_prefix("http://").expect("the fake AWS speaks plain HTTP");
        crate::http(address, method, path, headers, body).await
    }
}
