//! Whole frames, and what must hold whatever comes and whatever is pressed. `UPDATE_GOLDEN=1 cargo test --package ebb top`
//! writes the frames anew, and the pictures in `docs/images`.

mod picture;

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;

use super::app::{App, News};
use super::draw::draw;
use super::plain;
use crate::golden::is_golden;

const CLUSTER: &str = include_str!("../../tests/top/cluster.json");
const CPU: &str = include_str!("../../tests/top/cpu.json");
const GPUS: &str = include_str!("../../tests/top/gpus.json");
const MIG: &str = include_str!("../../tests/top/mig.json");
const BROKEN: &str = include_str!("../../tests/top/broken.json");
const FIXTURES: [&str; 5] = [CLUSTER, CPU, GPUS, MIG, BROKEN];

fn news(json: &str) -> News {
    if json == CLUSTER {
        return News::Cluster(Box::new(serde_json::from_str(json).unwrap()));
    }
    News::Node(Box::new(serde_json::from_str(json).unwrap()))
}

fn frame(app: &mut App, columns: u16, rows: u16) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, columns, rows));
    draw(app, &mut buffer, Duration::from_secs(5));
    buffer
}

/// Compares with what was drawn before.
fn check(name: &str, json: &str, keys: &[KeyCode], columns: u16, rows: u16) {
    let mut app = App::new("http://127.0.0.1:9482");
    app.take(news(json), Duration::ZERO);
    for key in keys {
        // Keys move in what was drawn last.
        frame(&mut app, columns, rows);
        app.key(KeyEvent::new(*key, KeyModifiers::NONE));
    }
    let drawn = plain::text(&frame(&mut app, columns, rows), false);
    is_golden(&drawn, &format!("tests/golden/top-{name}-{columns}x{rows}.txt"));
}

#[test]
fn a_node_with_its_gpus_and_who_uses_them() {
    check("gpus", GPUS, &[], 80, 24);
    check("gpus", GPUS, &[], 140, 45);
    check("mig", MIG, &[], 80, 24);
    check("mig", MIG, &[], 140, 45);
}

#[test]
fn a_node_without_gpus_whose_pods_take_cpus_from_one_another() {
    check("cpu", CPU, &[], 80, 24);
    check("cpu", CPU, &[], 140, 45);
}

#[test]
fn what_is_not_known_is_a_dash_and_its_source_is_named() {
    check("broken", BROKEN, &[], 80, 24);
}

#[test]
fn a_cluster_with_what_is_used_and_what_is_requested() {
    check("cluster", CLUSTER, &[], 80, 24);
    check("cluster", CLUSTER, &[], 140, 45);
    check("cluster-pods", CLUSTER, &[KeyCode::Down, KeyCode::Enter], 80, 24);
}

/// Of the README: a node that was watched for five minutes, whose figures went up and down.
#[test]
fn pictures_are_of_what_is_drawn() {
    let News::Node(last) = news(GPUS) else { unreachable!("a node's document") };
    let mut app = App::new("http://127.0.0.1:9482");
    for ago in (0..300).rev() {
        let mut node = last.clone();
        node.sampled_at = node.sampled_at.map(|now| now.before(Duration::from_secs(ago)));
        // Of its last value; the last one is itself.
        let swing = |low: f64, pace: f64, phase: f64| {
            let wave =
                |seconds: u64| (seconds as f64 * pace + phase).sin() * (seconds as f64 * pace * 3.7 + phase).cos();
            ((1.0 + low) / 2.0 + (1.0 - low) / 2.0 * (wave(ago) - wave(0))).clamp(low, 1.0)
        };
        let scale = |figure: &mut Option<f64>, by: f64| {
            *figure = figure.map(|figure| if ago == 0 { figure } else { figure * by })
        };
        for (index, gpu) in node.gpus.iter_mut().enumerate() {
            let by = match index {
                // A training that writes a checkpoint now and then, all of its GPUs at once.
                0..4 if (ago + 20) % 75 < 14 => 0.12,
                0..4 => swing(0.96, 0.9, index as f64),
                _ => swing(0.1, 0.07, index as f64),
            };
            scale(&mut gpu.busy_permille, by);
        }
        if let Some(cpu) = &mut node.node_cpu {
            scale(&mut cpu.busy_permille, swing(0.5, 0.05, 0.0));
        }
        if let Some(memory) = &mut node.memory {
            scale(&mut memory.working_set_bytes, 1.0 - 0.001 * ago as f64);
        }
        scale(&mut node.run_queue_cores, swing(0.1, 0.11, 2.0));
        for (phase, stalled) in (1..).zip(node.pressure.values_mut()) {
            scale(&mut stalled.some_permille, swing(0.1, 0.08, f64::from(phase)));
        }
        app.take(News::Node(node), Duration::ZERO);
    }
    is_golden(&picture::svg(&frame(&mut app, 124, 37)), "../docs/images/top-node.svg");

    let mut app = App::new("http://127.0.0.1:9484");
    app.take(news(CLUSTER), Duration::ZERO);
    is_golden(&picture::svg(&frame(&mut app, 132, 32)), "../docs/images/top-cluster.svg");
}

#[test]
fn a_peer_that_went_away_is_said_to_be_away_over_its_last_figures() {
    let mut app = App::new("http://127.0.0.1:9482");
    app.take(news(GPUS), Duration::ZERO);
    app.take(News::Away("connection refused".into()), Duration::from_secs(1));
    let drawn = plain::text(&frame(&mut app, 100, 30), false);
    assert!(drawn.contains("No answer for 4s, trying on: connection refused"), "{drawn}");
    assert!(drawn.contains("ip-10-0-0-7"), "{drawn}");
}

/// A document in which something is something else.
fn mutated(json: &str, at: usize, with: &serde_json::Value) -> String {
    fn walk(value: &mut serde_json::Value, left: &mut usize, with: &serde_json::Value) {
        if *left == 0 {
            *value = with.clone();
        }
        *left = left.wrapping_sub(1);
        match value {
            serde_json::Value::Array(items) => items.iter_mut().for_each(|item| walk(item, left, with)),
            serde_json::Value::Object(items) => items.values_mut().for_each(|item| walk(item, left, with)),
            _ => {}
        }
    }
    let mut value = serde_json::from_str(json).unwrap();
    walk(&mut value, &mut { at }, with);
    value.to_string()
}

/// Without what bars, graphs and rules are made of.
fn words(drawn: &str) -> impl Iterator<Item = &str> {
    let between = |c: char| matches!(c, '\u{2500}'..='\u{259f}' | '·' | ' ' | '\n' | ',' | '(' | ')' | ':');
    drawn.split(between).filter(|word| !word.is_empty())
}

/// All figures with their units. Of `3 of 8` nothing: how many rows are shown may be another number in each frame.
fn figures(drawn: &str) -> BTreeSet<(&str, &str)> {
    const UNITS: &[&str] =
        &["%", "B", "KiB", "MiB", "GiB", "W", "°C", "an", "CPU", "CPUs", "GPU", "GPUs", "node", "pods"];
    let is_figure = |word: &str| {
        let word = word.trim_start_matches(['$', '<']);
        word.starts_with(|c: char| c.is_ascii_digit()) && !word.contains('…')
    };
    let pairs = words(drawn).zip(words(drawn).skip(1).chain([""]));
    let pairs = pairs.filter(|(word, next)| is_figure(word) && *next != "of");
    pairs.map(|(word, next)| (word, if UNITS.contains(&next) { next } else { "" })).collect()
}

#[test]
fn what_has_no_room_is_left_out_or_seen_to_be_cut() {
    for json in FIXTURES {
        let mut app = App::new("http://127.0.0.1:9482");
        app.take(news(json), Duration::ZERO);
        let whole = plain::text(&frame(&mut app, 500, 200), false);
        let (whole_words, whole_figures): (BTreeSet<&str>, _) = (words(&whole).collect(), figures(&whole));
        for (columns, rows) in (60..=200).flat_map(|columns| [(columns, 24), (columns, 45)]) {
            let drawn = plain::text(&frame(&mut app, columns, rows), false);
            let is_count = |word: &str| word.parse::<usize>().is_ok();
            let cut = words(&drawn).find(|word| !whole_words.contains(word) && !word.contains('…') && !is_count(word));
            assert_eq!(cut, None, "at {columns} columns:\n{drawn}");
            let cut = figures(&drawn).difference(&whole_figures).next().copied();
            assert_eq!(cut, None, "at {columns} columns:\n{drawn}");
        }
    }
}

/// At the left of what begins there, at the right of what ends there.
#[test]
fn titles_stand_over_their_columns() {
    const RIGHT: &[&str] = &["CPU", "WAITING", "HELD BACK", "MEMORY", "BUSY", "SM", "POWER", "TEMP", "REQ.", "PODS"];
    const LEFT: &[&str] = &["OF NODE", "HISTORY", "PREEMPTED/S BY", "HELD BY", "STATE", "GROUP"];
    for (json, columns) in FIXTURES.into_iter().flat_map(|json| (60..=200).map(move |columns| (json, columns))) {
        let mut app = App::new("http://127.0.0.1:9482");
        app.take(news(json), Duration::ZERO);
        let drawn = plain::text(&frame(&mut app, columns, 45), false);
        let mut lines = drawn.lines().peekable();
        while let Some(head) = lines.next() {
            if !["NAME", "NODE", "GPU"].contains(&words(head).next().unwrap_or("")) || head.contains('%') {
                continue;
            }
            assert!(!head.contains('…'), "{head}");
            let at = |byte: usize| head[..byte].chars().count();
            let found = |titles: &'static [&str]| titles.iter().flat_map(|title| head.match_indices(title));
            let mut blank: Vec<usize> = found(LEFT).map(|(byte, _)| at(byte) - 1).collect();
            blank.extend(found(RIGHT).map(|(byte, title)| at(byte + title.len())));
            while let Some(row) = lines.next_if(|row| row.starts_with(' ')) {
                let aligned = blank.iter().all(|column| row.chars().nth(*column).is_none_or(|c| c == ' '));
                assert!(aligned, "at {columns} columns:\n{head}\n{row}");
            }
        }
    }
}

proptest! {
    #[test]
    fn nothing_that_comes_or_is_pressed_makes_it_panic(
        which in 0..FIXTURES.len(),
        at in 0..400_usize,
        with in prop::sample::select(vec![
            serde_json::json!(null),
            serde_json::json!(-1.0),
            serde_json::json!(1e300),
            serde_json::json!(""),
            serde_json::json!("\u{1b}[2J\u{202e}\u{4e2d}\u{6587}"),
            serde_json::json!([]),
            serde_json::json!({}),
        ]),
        columns in 0..200_u16,
        rows in 0..60_u16,
        keys in prop::collection::vec(
            prop::sample::select(vec![
                KeyCode::Up, KeyCode::Down, KeyCode::PageDown, KeyCode::End, KeyCode::Enter, KeyCode::Esc,
                KeyCode::Char('/'), KeyCode::Char('m'), KeyCode::Char('w'), KeyCode::Char('g'), KeyCode::Char('?'),
                KeyCode::Char('x'), KeyCode::Backspace,
            ]),
            0..12,
        ),
    ) {
        let json = mutated(FIXTURES[which], at, &with);
        let mut app = App::new("http://127.0.0.1:9482");
        // What is no such document is refused before it comes here.
        if which == 0 {
            if let Ok(update) = serde_json::from_str(&json) {
                app.take(News::Cluster(Box::new(update)), Duration::ZERO);
            }
        } else if let Ok(node) = serde_json::from_str(&json) {
            app.take(News::Node(Box::new(node)), Duration::ZERO);
        }
        for key in keys {
            frame(&mut app, columns, rows);
            app.key(KeyEvent::new(key, KeyModifiers::NONE));
        }
        let drawn = plain::text(&frame(&mut app, columns, rows), false);
        prop_assert!(!drawn.contains(['\u{1b}', '\u{202e}']), "control characters");
    }
}
