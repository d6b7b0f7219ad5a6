//! Loading the hypervisor elsewhere: a copy of its ELF file with other physical addresses.
//!
//! The image claims to run at any physical base. QEMU's PVH loader puts it where the program headers say, so a
//! copy whose `p_paddr` fields and PVH entry are moved together is the proof.

use anyhow::{Context as _, Result, bail, ensure};

/// Program header type of a loaded segment (ELF-64 object file format, table 5-1).
const PT_LOAD: u32 = 1;
/// Program header type of a note segment.
const PT_NOTE: u32 = 4;
/// Type of the Xen note that carries the PVH entry, a physical address (`XEN_ELFNOTE_PHYS32_ENTRY`).
const PHYS32_ENTRY: u32 = 18;
/// The image is mapped by 2 MiB pages: any base is a multiple of that.
const ALIGN: u64 = 2 << 20;

/// Section header type of a symbol table (ELF-64 object file format, table 3-2).
const SHT_SYMTAB: u32 = 2;

/// The physical address at which the loaded symbol `name` of `image` begins: its address, as far from its segment's
/// virtual address as the segment's physical one is.
///
/// # Errors
/// When the file is damaged, or has no such symbol in a loaded segment.
pub fn physical_address(image: &[u8], name: &str) -> Result<u64> {
    ensure!(image.get(..6) == Some(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let address = symbol(image, name)?.with_context(|| format!("there is no symbol {name}"))?;
    let table = usize::try_from(read_u64(image, 32)?)?;
    let size = usize::from(read_u16(image, 54)?);
    for index in 0..usize::from(read_u16(image, 56)?) {
        let header = table.saturating_add(index * size);
        let start = read_u64(image, header + 16)?;
        if read_u32(image, header)? == PT_LOAD
            && let Some(offset) = address.checked_sub(start)
            && offset < read_u64(image, header + 40)?
        {
            return read_u64(image, header + 24)?.checked_add(offset).context("a segment wraps around");
        }
    }
    bail!("symbol {name} is in no loaded segment")
}

/// The value of a symbol.
fn symbol(image: &[u8], name: &str) -> Result<Option<u64>> {
    const ENTRY_BYTES: usize = 24;
    let table = usize::try_from(read_u64(image, 40)?)?;
    let size = usize::from(read_u16(image, 58)?);
    let section = |index: usize| table.saturating_add(index.saturating_mul(size));
    // Offset and length of a section's contents.
    let contents = |header: usize| -> Result<(usize, usize)> {
        Ok((usize::try_from(read_u64(image, header + 24)?)?, usize::try_from(read_u64(image, header + 32)?)?))
    };
    for index in 0..usize::from(read_u16(image, 60)?) {
        let header = section(index);
        if read_u32(image, header + 4)? != SHT_SYMTAB {
            continue;
        }
        let names = contents(section(read_u32(image, header + 40)? as usize))?.0;
        let (start, bytes) = contents(header)?;
        let symbols = image
            .get(start..start.saturating_add(bytes))
            .context("the ELF file ends before its symbols do")?;
        for entry in symbols.chunks_exact(ENTRY_BYTES) {
            let at = names.saturating_add(read_u32(entry, 0)? as usize);
            let found = image.get(at..).and_then(|rest| rest.strip_prefix(name.as_bytes()));
            if found.is_some_and(|rest| rest.first() == Some(&0)) {
                return Ok(Some(read_u64(entry, 8)?));
            }
        }
    }
    Ok(None)
}

/// A copy of `image` whose lowest loaded segment lies at physical `base`, everything else moved along.
///
/// # Errors
/// When the file is no 64-bit little-endian ELF file, has no PVH entry, or would not fit below 4 GiB at `base`.
pub fn move_to(image: &[u8], base: u64) -> Result<Vec<u8>> {
    ensure!(base.is_multiple_of(ALIGN), "load base {base:#x} is not a multiple of 2 MiB");
    ensure!(image.get(..6) == Some(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let mut copy = image.to_vec();
    let table = usize::try_from(read_u64(image, 32)?)?;
    let size = usize::from(read_u16(image, 54)?);
    let count = usize::from(read_u16(image, 56)?);
    ensure!(size >= 56, "program headers of {size} bytes; 56 are needed");

    let mut lowest = None;
    let mut highest = 0;
    for index in 0..count {
        let header = table.saturating_add(index * size);
        if read_u32(image, header)? == PT_LOAD {
            let start = read_u64(image, header + 24)?;
            let end = start.checked_add(read_u64(image, header + 40)?).context("a segment wraps around")?;
            lowest = Some(lowest.map_or(start, |low: u64| low.min(start)));
            highest = highest.max(end);
        }
    }
    let lowest = lowest.context("no loaded segment")?;
    let delta = base.wrapping_sub(lowest);
    ensure!(highest.wrapping_add(delta) <= 1 << 32, "the image would end above 4 GiB");

    let mut entries = 0;
    for index in 0..count {
        let header = table.saturating_add(index * size);
        let kind = read_u32(image, header)?;
        if kind == PT_LOAD || kind == PT_NOTE {
            let moved = read_u64(image, header + 24)?.wrapping_add(delta);
            write(&mut copy, header + 24, &moved.to_le_bytes())?;
        }
        if kind == PT_NOTE {
            let start = usize::try_from(read_u64(image, header + 8)?)?;
            let end = start.saturating_add(usize::try_from(read_u64(image, header + 32)?)?);
            ensure!(end <= image.len(), "the ELF file ends before its notes do");
            entries += move_entry(&mut copy, start, end, delta)?;
        }
    }
    match entries {
        1 => Ok(copy),
        0 => bail!("no PVH entry note"),
        more => bail!("{more} PVH entry notes; one is needed"),
    }
}

/// Moves the PVH entry by `delta` if the notes in `start..end` of the file hold one; returns how many they hold.
fn move_entry(copy: &mut [u8], start: usize, end: usize, delta: u64) -> Result<usize> {
    let mut entries = 0;
    let mut at = start;
    while at + 12 <= end {
        let name_size = read_u32(copy, at)? as usize;
        let value_size = read_u32(copy, at + 4)? as usize;
        let kind = read_u32(copy, at + 8)?;
        let name = at + 12;
        let value = name + name_size.next_multiple_of(4);
        if kind == PHYS32_ENTRY && copy.get(name..name + name_size) == Some(b"Xen\0") {
            let low = u64::from(read_u32(copy, value)?).wrapping_add(delta);
            let low = u32::try_from(low).context("the PVH entry would lie above 4 GiB")?;
            ensure!(matches!(value_size, 4 | 8), "a PVH entry of {value_size} bytes; 4 or 8 are known");
            // The upper half of the 8-byte form is zero: the entry is a 32-bit address.
            write(copy, value, &low.to_le_bytes())?;
            entries += 1;
        }
        at = value + value_size.next_multiple_of(4);
    }
    Ok(entries)
}

fn bytes<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N]> {
    let field = image.get(at..).and_then(|rest| rest.first_chunk::<N>());
    field.copied().with_context(|| format!("the ELF file ends before offset {at:#x}"))
}

fn read_u16(image: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(bytes(image, at)?))
}

fn read_u32(image: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(bytes(image, at)?))
}

fn read_u64(image: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(bytes(image, at)?))
}

fn write(image: &mut [u8], at: usize, value: &[u8]) -> Result<()> {
    let field = image.get_mut(at..at + value.len()).context("a field lies outside the ELF file")?;
    field.copy_from_slice(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two loaded segments at 2 MiB and 4 MiB and a note with the entry 0x200010 in `value` bytes.
    fn sample(value: u32) -> Vec<u8> {
        let mut image = vec![0; 64 + 3 * 56];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[32..40].copy_from_slice(&64_u64.to_le_bytes());
        image[54..56].copy_from_slice(&56_u16.to_le_bytes());
        image[56..58].copy_from_slice(&3_u16.to_le_bytes());
        let note_offset = image.len() as u64;
        let note_size = u64::from(16 + value);
        let segments = [
            (PT_LOAD, 0, 0x20_0000_u64, 0x1000_u64),
            (PT_NOTE, note_offset, 0x20_0100, note_size),
            (PT_LOAD, 0, 0x40_0000, 0x1000),
        ];
        for (index, (kind, offset, physical, size)) in segments.into_iter().enumerate() {
            let header = 64 + index * 56;
            image[header..header + 4].copy_from_slice(&kind.to_le_bytes());
            image[header + 8..header + 16].copy_from_slice(&offset.to_le_bytes());
            image[header + 16..header + 24].copy_from_slice(&(physical | 1 << 63).to_le_bytes());
            image[header + 24..header + 32].copy_from_slice(&physical.to_le_bytes());
            image[header + 32..header + 40].copy_from_slice(&size.to_le_bytes());
            image[header + 40..header + 48].copy_from_slice(&size.to_le_bytes());
        }
        for word in [4, value, PHYS32_ENTRY] {
            image.extend(word.to_le_bytes());
        }
        image.extend(b"Xen\0");
        let mut entry = 0x20_0010_u64.to_le_bytes().to_vec();
        entry.truncate(value as usize);
        image.extend(entry);
        image
    }

    #[test]
    fn segments_and_entry_move_together_and_nothing_else() {
        for value in [4, 8] {
            let image = sample(value);
            let moved = move_to(&image, 64 << 20).unwrap();
            let note = 64 + 3 * 56 + 16;
            assert_eq!(read_u64(&moved, 64 + 24).unwrap(), 64 << 20);
            assert_eq!(read_u64(&moved, 64 + 56 + 24).unwrap(), (64 << 20) + 0x100);
            assert_eq!(read_u64(&moved, 64 + 112 + 24).unwrap(), 66 << 20);
            assert_eq!(read_u32(&moved, note).unwrap(), (64 << 20) + 0x10);
            let changed = image.iter().zip(&moved).filter(|(a, b)| a != b).count();
            assert!(changed <= 4 * 4, "{changed} bytes changed");
            assert_eq!(move_to(&moved, 2 << 20).unwrap(), image, "and back");
        }
    }

    /// [`sample`] with a symbol table of `first` at 0x200040 and `second` at 0x400040 past the virtual base.
    fn with_symbols() -> Vec<u8> {
        let mut image = sample(8);
        let names = image.len();
        image.extend(b"\0first\0second\0");
        let symbols = image.len();
        for (name, value) in [(1_u32, 0x20_0040_u64), (7, 0x40_0040)] {
            image.extend(name.to_le_bytes());
            image.extend([0; 4]);
            image.extend((value | 1 << 63).to_le_bytes());
            image.extend([0; 8]);
        }
        let table = image.len() as u64;
        for (kind, offset, size, link) in
            [(3_u32, names, symbols - names, 0_u32), (SHT_SYMTAB, symbols, 48, 0)]
        {
            image.extend(0_u32.to_le_bytes());
            image.extend(kind.to_le_bytes());
            image.extend([0; 16]);
            image.extend((offset as u64).to_le_bytes());
            image.extend((size as u64).to_le_bytes());
            image.extend(link.to_le_bytes());
            image.extend([0; 20]);
        }
        image[40..48].copy_from_slice(&table.to_le_bytes());
        image[58..60].copy_from_slice(&64_u16.to_le_bytes());
        image[60..62].copy_from_slice(&2_u16.to_le_bytes());
        image
    }

    #[test]
    fn symbols_lie_where_their_segment_is_loaded() {
        let image = with_symbols();
        assert_eq!(physical_address(&image, "first").unwrap(), 0x20_0040);
        assert_eq!(physical_address(&image, "second").unwrap(), 0x40_0040);
        let moved = move_to(&image, 64 << 20).unwrap();
        assert_eq!(physical_address(&moved, "second").unwrap(), (66 << 20) + 0x40);
        for none in ["", "firs", "secondx"] {
            assert!(physical_address(&image, none).is_err(), "{none:?}");
        }
        // The last section header ends in fields that nobody reads.
        for length in 0..image.len() - 20 {
            assert!(physical_address(&image[..length], "second").is_err(), "{length}");
        }
    }

    #[test]
    fn a_base_that_cannot_be_is_refused() {
        let image = sample(8);
        assert!(move_to(&image, 0x1000).is_err());
        assert!(move_to(&image, (1 << 32) - (2 << 20)).is_err());
        assert!(move_to(&image, 1 << 32).is_err());
    }

    #[test]
    fn every_truncation_is_refused() {
        let image = sample(8);
        for length in 0..image.len() {
            assert!(move_to(&image[..length], 64 << 20).is_err(), "{length}");
        }
    }
}
