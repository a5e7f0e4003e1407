//! Ebb's drain beside `kubectl drain`; see [`ebb_tests::contest`]. Prints one JSON document of medians.

use std::time::Duration;

use ebb_tests::contest::{Contest, Figures, GRACE, Shape, Who};
use serde_json::{Map, Value, json};

/// How long the replacements of the budget's pods take to be ready.
const READY_AFTER: Duration = Duration::from_secs(2);
const FULL: Shape = Shape { nodes: 1, pods_per_node: 110, ready_after: Duration::ZERO, has_budget: false };
const BUDGET: Shape = Shape { nodes: 1, pods_per_node: 20, ready_after: READY_AFTER, has_budget: true };

#[tokio::main]
async fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|it| it.parse().expect("numbers only")).collect();
    let [rounds, nodes] = numbers[..] else { panic!("bench-drain ROUNDS NODES") };
    let many = Shape { nodes, pods_per_node: 10, ..FULL };
    let full = in_turn(FULL, rounds, &[Who::Ebb, Who::Kubectl, Who::Floor], &[]).await;
    let budget = in_turn(BUDGET, rounds, &[Who::Ebb, Who::Kubectl], &[]).await;
    // One call drains one node after the other, seven seconds each: measured once, and not for very many.
    let once: &[Who] = if nodes <= 100 { &[Who::Kubectl] } else { &[] };
    let many = in_turn(many, rounds, &[Who::Ebb, Who::Kubectls, Who::Floor], once).await;
    // While a pod waits for its place nobody else may go; the last one's is nobody's to wait for.
    let pace = READY_AFTER * u32::try_from(BUDGET.pods_per_node - 1).expect("a small number");
    println!(
        "{}",
        json!({
            "graceSeconds": GRACE.as_secs(),
            "full": full,
            "budget": budget,
            "budgetsOwnPace": pace.as_secs(),
            "nodes": nodes,
            "many": many,
        })
    );
}

/// All of these so often, in an order that alternates; then those `once`.
async fn in_turn(shape: Shape, rounds: usize, all: &[Who], once: &[Who]) -> Value {
    eprintln!("{shape:?}");
    let mut contest = Contest::begin(shape).await;
    let mut figures: Vec<(Who, Vec<Figures>)> = all.iter().chain(once).map(|who| (*who, Vec::new())).collect();
    for round in 0..rounds {
        let mut turns: Vec<usize> = (0..all.len()).collect();
        turns.rotate_left(round % all.len());
        for turn in turns {
            measure(&mut contest, &mut figures[turn]).await;
        }
    }
    for turn in &mut figures[all.len()..] {
        measure(&mut contest, turn).await;
    }
    let name = |who| match who {
        Who::Ebb => "ebb",
        Who::Kubectl => "kubectl",
        Who::Kubectls => "kubectls",
        Who::Floor => "floor",
    };
    figures.iter().map(|(who, figures)| (name(*who).to_owned(), median(figures))).collect::<Map<_, _>>().into()
}

async fn measure(contest: &mut Contest, (who, figures): &mut (Who, Vec<Figures>)) {
    let measured = contest.measure(*who).await;
    eprintln!("{who:?}: {measured:.2?}");
    figures.push(measured);
}

/// Of each figure.
fn median(figures: &[Figures]) -> Value {
    let names = figures.iter().flat_map(Figures::keys);
    let of = |name: &'static str| {
        let mut sorted: Vec<f64> = figures.iter().map(|figures| figures[name]).collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
    };
    names.map(|name| ((*name).to_owned(), json!(of(name)))).collect::<Map<_, _>>().into()
}
