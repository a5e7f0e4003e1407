//! What was recorded is decided again: whole runs with faults by chance, coordinators that crash included.

use std::cell::RefCell;
use std::rc::Rc;

use ebb_core::fleet::Fleet;
use ebb_core::journal::{Handled, Line, Played, Replay};
use ebb_sim::autoscaler::Recorded;
use ebb_sim::soak;

fn recorded(seed: u64) -> String {
    let record = Rc::new(RefCell::new(String::new()));
    let run = soak::run_with(seed, &|policy| Box::new(Recorded::new(policy.clone(), record.clone())));
    run.unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    record.take()
}

#[test]
fn a_record_replays_to_the_same_actions() {
    let (mut decisions, mut starts) = (0, 0);
    for seed in 0..4 {
        let mut replay = Replay::new(None);
        for (number, line) in recorded(seed).lines().enumerate() {
            match replay.play(line).unwrap() {
                Played::Handled(compared) => {
                    assert!(!compared.differs(), "seed {seed}, line {}: {compared:#?}", number + 1);
                    decisions += compared.both.iter().filter(|action| action.because().is_some()).count();
                }
                Played::Start(_) => starts += 1,
                Played::Torn => panic!("nobody crashed while writing"),
            }
        }
    }
    assert!(decisions > 100 && starts > 4, "{decisions} decisions, {starts} starts: too little to mean anything");
}

/// As when a file is full and the next one begins.
#[test]
fn a_fleet_that_was_written_down_goes_on_as_if_it_had_not_been() {
    for seed in 0..2 {
        let mut fleet: Option<Fleet> = None;
        for (number, line) in recorded(seed).lines().enumerate() {
            match Line::parse(line).unwrap() {
                Line::Start(start) => fleet = Some(Fleet::new(start.policy)),
                Line::Handled(Handled { now, event, actions }) => {
                    let mut current = fleet.take().unwrap();
                    assert_eq!(current.handle(now, event), actions, "seed {seed}, line {}", number + 1);
                    if number % 97 == 0 {
                        let Line::Start(start) = Line::parse(&Line::resumed(now, &current).to_line()).unwrap() else {
                            panic!("a start is read as one");
                        };
                        current = start.fleet.unwrap().with_policy(start.policy);
                    }
                    fleet = Some(current);
                }
            }
        }
    }
}
