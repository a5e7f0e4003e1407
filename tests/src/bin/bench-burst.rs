//! How long from a pod that finds no node to `SetDesiredCapacity`, in a lab that is otherwise empty; see
//! [`ebb_tests::trials`]. Prints one JSON document.

use std::time::Duration;

use ebb_tests::trials::{Trials, summary};
use ebb_tests::{Ebb, Lab, LabOptions};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);
const CONFIG: &str = "
groups: [{name: ebb, min: 0, max: 100, instanceType: m5.xlarge, labels: {pool: ebb}}]
scaleUp: {pendingFor: 0s}
scaleDown: {unneededFor: 24h}
";

#[tokio::main]
async fn main() {
    let trials: u32 = std::env::args().nth(1).and_then(|trials| trials.parse().ok()).unwrap_or(20);
    let groups = Trials::POOLS.map(Trials::group).to_vec();
    let mut ebb = Ebb::install(Lab::up(LabOptions { groups, ..LabOptions::default() }).await).await;
    ebb.start_coordinator(CONFIG, &[]).await;
    let leads = async || ebb.listens().await && ebb.metrics().await.contains("ebb_coordinator_synced 1");
    ebb.lab.wait_until("the coordinator to lead and see", PATIENCE, leads).await;
    let [ours, floor] = Trials::begin(&ebb).run(trials).await;
    println!("{}", json!({"trials": trials, "ebb": summary(&ours), "floor": summary(&floor)}));
}
