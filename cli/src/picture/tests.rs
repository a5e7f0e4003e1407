use std::sync::LazyLock;
use std::time::Duration;

use ebb_core::fleet::Fleet;
use ebb_sim::{scenarios, simulate};

use super::*;

static RUN: LazyLock<(Scenario, Run)> = LazyLock::new(|| {
    let scenario = scenarios::named("bursty_training").unwrap();
    let options = ebb_sim::Options { seed: 1, snapshot_every: Some(Duration::from_secs(5)), faults: None };
    let policy = scenario.policy.clone();
    let run = simulate(&scenario, &options, &|| Box::new(Fleet::new(policy.clone()))).unwrap();
    (scenario, run)
});

#[test]
fn a_run_becomes_seven_stages_a_film_and_an_animation() {
    let (scenario, run) = &*RUN;
    let folder = tempfile::tempdir().unwrap();
    let files = draw(scenario, run, &folder.path().join("one")).unwrap();
    let again = draw(scenario, run, &folder.path().join("other")).unwrap();
    assert_eq!(files.len(), 9);
    for (file, again) in files.iter().zip(&again) {
        let bytes = fs::read(file).unwrap();
        assert!(bytes == fs::read(again).unwrap(), "{} differs from run to run", file.display());
        if file.extension().unwrap() == "png" {
            let side = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!((side(16), side(20)), (1280, 720));
        }
        let limit = if file.extension().unwrap() == "gif" { 2 << 20 } else { 1 << 20 };
        assert!(bytes.len() < limit, "{} has {} bytes", file.display(), bytes.len());
    }
    let path = folder.path().join("one/flow.svg");
    Tree::from_data(&fs::read(path).unwrap(), &Options::default()).unwrap();
}

#[test]
fn stages_follow_each_other() {
    let (scenario, run) = &*RUN;
    let story = Story::new(scenario, run).unwrap();
    assert!(story.stages.is_sorted_by(|one, next| one < next), "{:?}", story.stages);
    let nodes = |stage: usize| run.snapshots[story.stages[stage]].cluster.nodes.len();
    assert_eq!((nodes(0), nodes(6)), (2, 2));
    assert!(nodes(3) > nodes(2) && nodes(3) > nodes(5));
}

#[test]
fn texts_neither_overlap_nor_leave_the_picture() {
    let (scenario, run) = &*RUN;
    let story = Story::new(scenario, run).unwrap();
    for moment in (0..7).map(|stage| story.stage(stage)).chain(story.moments(200)) {
        let texts = frame::draw(&story, moment).texts;
        for (index, one) in texts.iter().enumerate() {
            let place = one.1;
            let inside = place.x >= 0.0 && place.y >= 0.0 && place.right() <= WIDTH && place.bottom() <= HEIGHT;
            assert!(inside, "{one:?} in {}", moment.snapshot);
            for other in &texts[..index] {
                let beside = place.x >= other.1.right() || other.1.x >= place.right();
                let above = place.y >= other.1.bottom() || other.1.y >= place.bottom();
                assert!(beside || above, "{one:?} over {other:?} in {}", moment.snapshot);
            }
        }
    }
}

#[test]
fn text_from_outside_is_shortened_and_escaped() {
    let font = text::plain(15.0, "#000");
    let short = font.shorten("leaves 13 pods waiting for a node", 120.0);
    assert!(short.ends_with('…') && font.width(&short) <= 120.0, "{short}");
    assert_eq!(font.shorten("short", 120.0), "short");
    assert_eq!(font.wrap("one two three four", font.width("one two "), 2), ["one two", "three f…"]);
    assert_eq!(text::escape("<a & \"b\"> 日"), "&lt;a &amp; &quot;b&quot;&gt; ?");
}

#[test]
fn measured_widths_are_what_is_drawn() {
    let mut canvas = Canvas::default();
    let text = "Tasks queued: 12, AVATAR To";
    canvas.text(10.0, 50.0, text::bold(20.0, "#000"), text);
    let options = Options { fontdb: Arc::clone(&text::FONTS), ..Options::default() };
    let plain = canvas.document().replace("textLength", "data-length");
    let tree = Tree::from_str(&plain, &options).unwrap();
    let drawn = tree.root().children()[0].bounding_box().width();
    assert!((drawn - canvas.texts[0].1.w).abs() < 0.5, "{drawn} {:?}", canvas.texts[0]);
}
