//! Frames as an animated GIF: one palette for all of them, and of each frame only what changed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;

use gif::{DisposalMethod, Encoder, Frame, Repeat};
use resvg::tiny_skia::Pixmap;

type Rgb = [u8; 3];

/// The last of the palette's 256.
const TRANSPARENT: u8 = 255;

/// A frame, and for how many hundredths of a second it stays.
pub(super) struct Shot {
    pub(super) pixels: Pixmap,
    pub(super) delay: u16,
}

pub(super) fn write(out: impl Write, shots: &[Shot]) -> anyhow::Result<()> {
    let Some(first) = shots.first() else { return Ok(()) };
    let (width, height) = (u16::try_from(first.pixels.width())?, u16::try_from(first.pixels.height())?);
    let palette = Palette::of(shots);
    let mut encoder = Encoder::new(out, width, height, &palette.bytes())?;
    encoder.set_repeat(Repeat::Infinite)?;
    let mut before: Option<Vec<u8>> = None;
    for shot in shots {
        let indexes = palette.indexes(&shot.pixels);
        let mut frame = match &before {
            None => Frame { width, height, buffer: Cow::Owned(indexes.clone()), ..Frame::default() },
            Some(before) => changes(before, &indexes, width),
        };
        frame.delay = shot.delay;
        frame.dispose = DisposalMethod::Keep;
        encoder.write_frame(&frame)?;
        before = Some(indexes);
    }
    Ok(())
}

/// The smallest rectangle around all that changed; what is the same in it is transparent.
fn changes(before: &[u8], after: &[u8], width: u16) -> Frame<'static> {
    let row = usize::from(width);
    let changed = || (0..after.len()).filter(|index| before[*index] != after[*index]);
    let (Some(first), Some(last)) = (changed().next(), changed().next_back()) else {
        return Frame {
            width: 1,
            height: 1,
            buffer: Cow::Owned(vec![TRANSPARENT]),
            transparent: Some(TRANSPARENT),
            ..Frame::default()
        };
    };
    let (top, bottom) = (first / row, last / row);
    let left = changed().map(|index| index % row).min().unwrap_or(0);
    let right = changed().map(|index| index % row).max().unwrap_or(0);
    let pixel = |index: usize| if before[index] == after[index] { TRANSPARENT } else { after[index] };
    let buffer = (top..=bottom).flat_map(|y| (left..=right).map(move |x| pixel(y * row + x))).collect();
    // All within the picture, whose sides are `u16`.
    Frame {
        left: left as u16,
        top: top as u16,
        width: (right - left + 1) as u16,
        height: (bottom - top + 1) as u16,
        buffer: Cow::Owned(buffer),
        transparent: Some(TRANSPARENT),
        ..Frame::default()
    }
}

/// Colours of all frames. They are drawings: few flat colours, and at their edges mixtures of two.
struct Palette {
    colours: Vec<Rgb>,
    /// By the upper five bits of red, green and blue.
    nearest: Vec<u8>,
}

impl Palette {
    /// Of each five-bit cell its commonest colour; the cells most in use.
    fn of(shots: &[Shot]) -> Self {
        let mut cells: BTreeMap<usize, BTreeMap<Rgb, u64>> = BTreeMap::new();
        // The frames resemble each other: every fourth tells.
        for shot in shots.iter().step_by(4) {
            let mut run: Option<(Rgb, u64)> = None;
            for rgb in pixels(&shot.pixels) {
                match &mut run {
                    Some((same, count)) if *same == rgb => *count += 1,
                    _ => {
                        if let Some((rgb, count)) = run.replace((rgb, 1)) {
                            *cells.entry(cell(rgb)).or_default().entry(rgb).or_default() += count;
                        }
                    }
                }
            }
        }
        let mut common: Vec<(u64, Rgb)> = cells
            .values()
            .filter_map(|colours| {
                let (rgb, _) = colours.iter().max_by_key(|(_, count)| **count)?;
                Some((colours.values().sum(), *rgb))
            })
            .collect();
        common.sort_unstable_by(|one, other| other.cmp(one));
        let colours: Vec<Rgb> = common.into_iter().take(usize::from(TRANSPARENT)).map(|(_, rgb)| rgb).collect();
        let nearest = (0..1 << 15).map(|cell| nearest(&colours, middle(cell))).collect();
        let mut palette = Self { colours, nearest };
        // A palette colour stands for its own cell exactly.
        for (index, rgb) in (0..TRANSPARENT).zip(&palette.colours) {
            palette.nearest[cell(*rgb)] = index;
        }
        palette
    }

    fn indexes(&self, pixmap: &Pixmap) -> Vec<u8> {
        pixels(pixmap).map(|rgb| self.nearest[cell(rgb)]).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.colours.concat();
        bytes.resize(3 * 256, 0);
        bytes
    }
}

fn pixels(pixmap: &Pixmap) -> impl Iterator<Item = Rgb> {
    pixmap.data().as_chunks::<4>().0.iter().map(|[red, green, blue, _]| [*red, *green, *blue])
}

fn cell([red, green, blue]: Rgb) -> usize {
    usize::from(red >> 3) << 10 | usize::from(green >> 3) << 5 | usize::from(blue >> 3)
}

fn middle(cell: usize) -> Rgb {
    [cell >> 10, cell >> 5, cell].map(|bits| ((bits & 31) << 3 | 4) as u8)
}

fn nearest(colours: &[Rgb], rgb: Rgb) -> u8 {
    let distance = |other: &Rgb| -> u32 { (0..3).map(|i| u32::from(rgb[i].abs_diff(other[i])).pow(2)).sum() };
    let best = (0..TRANSPARENT).zip(colours).min_by_key(|(_, other)| distance(other));
    best.map_or(0, |(index, _)| index)
}
