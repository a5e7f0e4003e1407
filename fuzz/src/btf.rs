//! The kernel's types, which are trusted to be the kernel's and nothing else.

use ebb_agent::fuzzing::btf_offset;
use libfuzzer_sys::arbitrary::{Arbitrary, Unstructured};

const STRUCT: u32 = 4;

/// An answer lies within what a member's place can say, and does not change with what follows the file.
pub fn target(bytes: &[u8]) {
    let answer = btf_offset(bytes, "task_struct", "pid");
    assert!(answer.is_none_or(|offset| offset <= u64::from(u32::MAX / 8)));
    if answer.is_some() {
        assert_eq!(btf_offset(&[bytes, &[0xff; 16]].concat(), "task_struct", "pid"), answer);
    }
}

#[derive(Debug)]
struct Struct {
    name: u8,
    /// Whether its members carry a width in bits.
    sized: bool,
    members: Vec<(u8, u32)>,
}

/// In a file of structs that are made up, each member is found where it was put.
pub fn built(bytes: &[u8]) {
    let Ok(structs) = Vec::<(u8, bool, Vec<(u8, u32)>)>::arbitrary(&mut Unstructured::new(bytes)) else { return };
    let structs: Vec<_> = structs.into_iter().map(|(name, sized, members)| Struct { name, sized, members }).collect();
    let btf = file(&structs);
    for name in structs.iter().map(|of| of.name) {
        let first = structs.iter().find(|of| of.name == name).expect("it is one of them");
        for member in first.members.iter().map(|(member, _)| *member) {
            let offsets = first.members.iter().filter(|(name, _)| *name == member);
            // A bit field is passed over, also for a later member of the same name.
            let expected = offsets.map(|(_, place)| place).find_map(|place| {
                let (bits, width) = if first.sized { (place & 0xff_ffff, place >> 24) } else { (*place, 0) };
                (width == 0 && bits % 8 == 0).then_some(u64::from(bits / 8))
            });
            assert_eq!(btf_offset(&btf, &word(name), &word(member)), expected, "{name}.{member} of {structs:?}");
        }
    }
}

fn word(number: u8) -> String {
    format!("n{number:03}")
}

fn file(structs: &[Struct]) -> Vec<u8> {
    let strings: Vec<u8> = (0..=255).flat_map(|number| (word(number) + "\0").into_bytes()).collect();
    let name = |number: u8| u32::from(number) * 5;
    let mut types = Vec::new();
    for of in structs {
        types.extend([name(of.name), u32::from(of.sized) << 31 | STRUCT << 24 | of.members.len() as u32, 8]);
        types.extend(of.members.iter().flat_map(|(member, place)| [name(*member), 1, *place]));
    }
    let length = types.len() as u32 * 4;
    let header = [24, 0, length, length, strings.len() as u32];
    let magic = [0xeb9f_u16.to_ne_bytes(), [1, 0]].concat();
    let words = header.into_iter().chain(types).flat_map(u32::to_ne_bytes);
    magic.into_iter().chain(words).chain(strings).collect()
}
