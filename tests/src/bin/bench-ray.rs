//! From tasks in Ray to nodes and back, level by level; see [`ebb_tests::Chain`]. Prints one JSON document, in seconds.

use std::time::Duration;

use ebb_tests::{Chain, ChainOptions, Level1};
use serde_json::{Value, json};

/// What stands for the boot of an EC2 instance (modelled: the flow says three to five minutes).
const BOOT: Duration = Duration::from_secs(10);
/// Instead of the flow's ten minutes.
const UNNEEDED_FOR: &str = "20s";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let flags = ["--unneeded-for", UNNEEDED_FOR];
    let driven = ChainOptions { level1: Level1::Ebb, ray: Some("    drive: {}"), flags: &flags, boot_delay: BOOT };
    let driven = up_and_down(driven).await;
    let immediately = ["--pending-for", "0s"];
    let read = |ray, flags| ChainOptions { level1: Level1::Ray, ray, flags, boot_delay: BOOT };
    let anticipated = up(read(Some(""), &flags)).await;
    let pending = up(read(None, &immediately)).await;
    let pending_for = up(read(None, &flags)).await;
    let document = json!({
        "boot": BOOT.as_secs(), "driven": driven, "anticipated": anticipated, "pending": pending, "pendingFor": pending_for,
    });
    println!("{document}");
}

/// A burst for three workers, until the last node for it was asked for.
async fn up(options: ChainOptions<'_>) -> Value {
    let mut chain = Chain::start(options).await;
    let _burst = chain.program("burst", "ray_burst.py", &["6", "3", "2"]);
    let (first, all) = asked(&mut chain).await;
    let from = submitted(&chain);
    let made = chain.kuberay.seen.values().filter_map(|[made, ..]| *made).max();
    json!({"firstAsked": since(from, first), "allAsked": since(from, all), "podsMade": made.map(|made| since(from, made))})
}

/// The same until all of it is gone.
async fn up_and_down(options: ChainOptions<'_>) -> Value {
    let mut chain = Chain::start(options).await;
    let burst = chain.program("burst", "ray_burst.py", &["6", "3", "2"]);
    chain.wait_until_replicas([3, 0]).await;
    let replicas = now();
    let (first, all) = asked(&mut chain).await;
    chain.wait_until("the tasks to be done", async |ebb, _| ebb.lab.log("burst").contains("done")).await;
    drop(burst);
    let from = submitted(&chain);
    let last = |what: usize| chain.kuberay.seen.values().filter_map(|seen| seen[what]).max().expect("they ran");
    let (made, placed) = (last(0), last(1));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time of this century")]
    let done = (chain.printed("burst", "done").expect("it was printed") * 1000.0) as u64;

    chain.wait_until("a worker to go", async |_, kuberay| kuberay.group("train", "cpu").await.0 < 3).await;
    let fewer = now();
    chain.wait_until_replicas([0, 0]).await;
    let none = now();
    let terminated = "TerminateInstanceInAutoScalingGroup";
    chain.wait_until("an instance to be terminated", async |ebb, _| !ebb.lab.aws_calls(terminated).is_empty()).await;
    let drained = chain.ebb.lab.aws_calls(terminated)[0].at_ms;
    chain.wait_until("all nodes to be gone", async |ebb, _| ebb.nodes().await.is_empty()).await;
    json!({
        "firstAsked": since(from, first), "allAsked": since(from, all), "replicas": since(from, replicas),
        "podsMade": since(from, made), "placed": since(from, placed), "done": since(from, done),
        "fewer": since(done, fewer), "none": since(done, none), "firstTerminated": since(done, drained),
        "gone": since(done, now()),
    })
}

/// When the first node was asked for, and when the third.
async fn asked(chain: &mut Chain) -> (u64, u64) {
    chain.wait_until("three nodes to be asked for", async |ebb, _| ebb.lab.group("workers").await.desired >= 3).await;
    let calls = chain.ebb.lab.aws_calls("SetDesiredCapacity");
    let at = |desired: u32| {
        let enough =
            |call: &&ebb_tests::AwsCall| call.params["DesiredCapacity"].parse::<u32>().is_ok_and(|it| it >= desired);
        calls.iter().find(enough).expect("it was asked for").at_ms
    };
    (at(1), at(3))
}

fn submitted(chain: &Chain) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a time of this century")]
    let at = (chain.printed("burst", "submitted").expect("it was printed") * 1000.0) as u64;
    at
}

fn now() -> u64 {
    ebb_tests::now().as_millis()
}

#[expect(clippy::cast_precision_loss, reason = "some minutes")]
fn since(from: u64, to: u64) -> f64 {
    to.saturating_sub(from) as f64 / 1000.0
}
