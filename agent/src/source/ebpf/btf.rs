//! Where a field lies in the running kernel, from the types that the kernel describes itself with.
//! The least of the format (`Documentation/bpf/btf.rst`) that answers this: aya keeps its own reading of it private, and
//! a general reader would hold several times the file in memory.

pub(super) const PATH: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;

/// The byte offset of `member` in the struct `of`. `None` also for a bit field, and for bytes that are not BTF.
pub(crate) fn offset(btf: &[u8], of: &str, member: &str) -> Option<u64> {
    let header = Header::read(btf)?;
    let mut types = header.types;
    while !types.is_empty() {
        let [name, details, _] = words(types)?;
        // Number of members, kind, and whether members carry bit sizes: bits 0-15, 24-28 and 31.
        let (count, kind, sized) = ((details & 0xffff) as usize, details >> 24 & 0x1f, details >> 31 == 1);
        let rest = types.get(12..)?;
        if kind == STRUCT && header.string(name)? == of.as_bytes() {
            return rest.get(..count * 12)?.chunks_exact(12).find_map(|found| {
                let [name, _, place] = words(found)?;
                let bits = if sized { place & 0xff_ffff } else { place };
                let whole = bits % 8 == 0 && (!sized || place >> 24 == 0);
                (whole && header.string(name)? == member.as_bytes()).then_some(u64::from(bits / 8))
            });
        }
        types = rest.get(trailing(kind, count)?..)?;
    }
    None
}

/// How many bytes follow the common part of a type.
fn trailing(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        2 | 7..=12 | 16 | 18 => 0, // Pointer; forward, typedef, qualifiers, function; float; type tag.
        1 | 14 | 17 => 4,          // Integer; variable; declaration tag.
        3 => 12,                   // Array.
        6 | 13 => count * 8,       // Enum; function prototype.
        STRUCT | 5 | 15 | 19 => count * 12, // Struct, union; section; 64-bit enum.
        _ => return None,
    })
}

struct Header<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Header<'a> {
    fn read(btf: &'a [u8]) -> Option<Self> {
        let magic = u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?);
        if magic != MAGIC {
            return None;
        }
        let [length, types, types_length, strings, strings_length] = words(btf.get(4..)?)?;
        let body = btf.get(length as usize..)?;
        let section = |start: u32, length: u32| body.get(start as usize..)?.get(..length as usize);
        Some(Self { types: section(types, types_length)?, strings: section(strings, strings_length)? })
    }

    fn string(&self, start: u32) -> Option<&'a [u8]> {
        self.strings.get(start as usize..)?.split(|&byte| byte == 0).next()
    }
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let (words, _) = bytes.get(..N * 4)?.as_chunks();
    Some(std::array::from_fn(|index| u32::from_ne_bytes(words[index])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRINGS: &[u8] = b"\0int\0task\0pid\0flag\0task_struct\0";
    const UNION: u32 = 5;

    /// BTF with an integer, a union and a struct that share the name `task`, and then `types`.
    fn btf(types: &[&[u32]]) -> Vec<u8> {
        let first: &[&[u32]] = &[&[at("int"), 1 << 24, 4, 32], &[at("task"), UNION << 24 | 1, 4, at("pid"), 1, 8]];
        let types: Vec<u8> = first.iter().chain(types).copied().flatten().flat_map(|word| word.to_ne_bytes()).collect();
        let lengths = [24, 0, types.len() as u32, types.len() as u32, STRINGS.len() as u32];
        let header =
            [MAGIC.to_ne_bytes(), [1, 0]].concat().into_iter().chain(lengths.into_iter().flat_map(u32::to_ne_bytes));
        header.chain(types).chain(STRINGS.iter().copied()).collect()
    }

    fn at(name: &str) -> u32 {
        let terminated = format!("\0{name}\0");
        let start = STRINGS.windows(terminated.len()).position(|window| window == terminated.as_bytes());
        start.expect("one of the strings above") as u32 + 1
    }

    #[test]
    fn a_member_is_found_by_the_name_of_its_struct() {
        let btf = btf(&[
            &[at("task"), STRUCT << 24 | 2, 16, at("flag"), 1, 0, at("pid"), 1, 64],
            &[at("task_struct"), STRUCT << 24 | 1, 4, at("pid"), 1, 32],
        ]);
        assert_eq!(offset(&btf, "task", "pid"), Some(8));
        assert_eq!(offset(&btf, "task_struct", "pid"), Some(4));
        assert_eq!(offset(&btf, "task_struct", "flag"), None);
        assert_eq!(offset(&btf, "int", "pid"), None);
    }

    #[test]
    fn a_bit_field_has_no_byte_offset() {
        let sized = 1 << 31 | STRUCT << 24 | 2;
        let btf = btf(&[&[at("task"), sized, 8, at("flag"), 1, 1 << 24 | 32, at("pid"), 1, 64]]);
        assert_eq!(offset(&btf, "task", "flag"), None);
        assert_eq!(offset(&btf, "task", "pid"), Some(8));
    }

    #[test]
    fn bytes_that_are_cut_off_hold_no_member() {
        let whole = btf(&[&[at("task"), STRUCT << 24 | 1, 4, at("pid"), 1, 0]]);
        assert_eq!(offset(&whole, "task", "pid"), Some(0));
        for length in 0..whole.len() {
            assert_eq!(offset(&whole[..length], "task", "pid"), None, "{length} bytes");
        }
    }
}
