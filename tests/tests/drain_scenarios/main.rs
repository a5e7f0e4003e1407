//! `drain_scenarios.yaml`, case by case. Whose cases they are says `drain_suites.yaml`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod case;
mod scene;
mod stage;
mod verdict;

use ebb_tests::Drains;
use futures::StreamExt;
use serde_json::Value;

/// Cases at the same time. They mostly wait.
const AT_ONCE: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn every_case_ends_as_it_says() {
    let all: Vec<Value> = serde_saphyr::from_str(include_str!("../drain_scenarios.yaml")).unwrap();
    let only = std::env::var("EBB_TEST_CASE").unwrap_or_default();
    let drains = Drains::up().await;
    let cases = all.into_iter().enumerate().map(|(index, case)| (format!("case-{index}"), case));
    let cases: Vec<_> = cases.filter(|(_, case)| case["name"].as_str().unwrap().contains(&only)).collect();
    let count = cases.len();
    let runs = cases.into_iter().map(|(node, case)| {
        let drains = &drains;
        async move {
            let case = scene::read(&node, &case);
            let began = std::time::Instant::now();
            let end = scene::play(drains, &node, &case).await;
            let seconds = began.elapsed().as_secs();
            println!("{}: {} ({seconds} s)", case.name, end.as_ref().err().map_or("as it says", String::as_str));
            end.is_ok()
        }
    });
    let ends: Vec<bool> = futures::stream::iter(runs).buffer_unordered(AT_ONCE).collect().await;
    let failed = ends.iter().filter(|ok| !**ok).count();
    assert_eq!(failed, 0, "of {count} cases");
}
