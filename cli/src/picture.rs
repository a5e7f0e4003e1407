//! Pictures of a simulated run: the flow's seven stages one by one and in motion, and the run as a film.
//! Drawn as SVG with fonts of our own, so that every machine makes the same bytes.

mod canvas;
mod cluster;
mod film;
mod frame;
mod motion;
mod story;
#[cfg(test)]
mod tests;
mod text;
mod timeline;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use ebb_sim::run::Run;
use ebb_sim::scenario::Scenario;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use self::canvas::{Canvas, HEIGHT, WIDTH};
use self::film::Shot;
use self::story::{STAGES, Story};

/// Of the film, whose frames many pages show smaller than the stages' pictures.
const FILM_SCALE: f32 = 0.75;
const FILM_FRAMES: usize = 84;

/// Draws a run into a folder, which it makes if need be. Returns the files.
pub(crate) fn draw(scenario: &Scenario, run: &Run, out: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let story = Story::new(scenario, run)?;
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let mut files = Vec::new();
    let mut write = |name: String, bytes: &[u8]| {
        let path = out.join(name);
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        files.push(path);
        anyhow::Ok(())
    };

    let stages: Vec<Canvas> = (0..STAGES.len()).map(|stage| frame::draw(&story, story.stage(stage))).collect();
    let stills = in_parallel(&stages, |stage| render(stage, 1.0)?.encode_png().context("encode a PNG"))?;
    for (number, (stage, png)) in (1..).zip(STAGES.iter().zip(stills)) {
        write(format!("stage-{number}-{}.png", stage.name), &png)?;
    }
    write("flow.svg".to_owned(), motion::document_of(&stages).as_bytes())?;

    let moments = story.moments(FILM_FRAMES);
    let shots = in_parallel(&moments, |moment| {
        let pixels = render(&frame::draw(&story, *moment), FILM_SCALE)?;
        let delay = match story.stages.iter().rposition(|stage| *stage == moment.snapshot) {
            Some(6) => 400,
            Some(_) => 140,
            None => 13,
        };
        Ok(Shot { pixels, delay })
    })?;
    let mut film = Vec::new();
    film::write(&mut film, &shots).context("encode the film")?;
    write("flow.gif".to_owned(), &film)?;
    Ok(files)
}

fn render(canvas: &Canvas, scale: f32) -> anyhow::Result<Pixmap> {
    let options = Options { fontdb: Arc::clone(&text::FONTS), ..Options::default() };
    let tree = Tree::from_str(&canvas.document(), &options).context("read the drawing")?;
    let mut pixmap =
        Pixmap::new((WIDTH * scale) as u32, (HEIGHT * scale) as u32).context("a picture without pixels")?;
    resvg::render(&tree, Transform::from_scale(scale, scale), &mut pixmap.as_mut());
    Ok(pixmap)
}

/// The results in the order of the items, made on all processors.
fn in_parallel<T: Sync, R: Send>(items: &[T], make: impl Fn(&T) -> anyhow::Result<R> + Sync) -> anyhow::Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let work = || {
        let indexes =
            std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|index| *index < items.len()));
        indexes.map(|index| (index, make(&items[index]))).collect::<Vec<_>>()
    };
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    let mut made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("drawing does not panic")).collect::<Vec<_>>()
    });
    made.sort_by_key(|(index, _)| *index);
    made.into_iter().map(|(_, made)| made).collect()
}
