//! Which build this is: the linker's hash over the image's content, kept in the image as a GNU build-id note.
//!
//! A log that names it can be held against an image before addresses of the one are looked up in the other.
#![expect(unsafe_code, reason = "reads a note that the linker wrote")]

use core::fmt;

unsafe extern "C" {
    static lh_build_id_start: u8;
    static lh_build_id_end: u8;
}

/// Name size, descriptor size and type, then the name `GNU` with its zero (ELF gABI, note section).
const NOTE_HEADER_BYTES: usize = 16;

/// The build-id of the running image, shown in hexadecimal as `readelf --notes` does, or `none` if it was linked without.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BuildId;

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = &raw const lh_build_id_start;
        let bytes = (&raw const lh_build_id_end).addr() - start.addr();
        // SAFETY: linker.ld puts both symbols around one note in read-only data that nobody changes.
        let note = unsafe { core::slice::from_raw_parts(start, bytes) };
        match note.get(NOTE_HEADER_BYTES..) {
            Some(id) if !id.is_empty() => id.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            _ => f.write_str("none"),
        }
    }
}
