//! A configuration as bytes: every field in the order of the model, little-endian, nothing optional.
//!
//! Counts and lengths take 8 bytes so that encoding cannot fail; an `Option` is one byte 0, or 1 and the value.
//! The form is canonical: bytes that decode are the bytes that encoding the result gives. It carries no
//! revision and no checksum of its own, the bundle around it does.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::addr::HostPhys;
use crate::irq::{CpuId, Gsi, Pin};
use crate::pci::Bdf;
use crate::policy::{DevicePolicy, EoiDeadline, NeverEoi, NoReset, RestartPolicy, StormLimit};

use super::model::{Config, Console, Device, ImageIndex, MaskPolicy, Module, Partition, Standby};
use super::validate::{
    MAX_CMDLINE_BYTES, MAX_CPUS, MAX_DEVICES, MAX_MODULES, MAX_NAME_BYTES, MAX_PARTITIONS,
};

/// Bytes that are no configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobError {
    /// Where the field starts, counted from the start of the blob.
    pub offset: usize,
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: BlobProblem,
}

/// What is wrong with a field of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobProblem {
    /// The blob ends within it.
    Truncated,
    /// A count or length of `found`, where `most` is the limit.
    TooMany {
        /// The count.
        found: u64,
        /// The limit.
        most: usize,
    },
    /// A number that means nothing there.
    Meaningless(u64),
    /// Text that is not UTF-8.
    NotText,
    /// Nothing should follow here.
    TrailingBytes,
}

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: ", self.field, self.offset)?;
        match self.problem {
            BlobProblem::Truncated => f.write_str("cut off"),
            BlobProblem::TooMany { found, most } => write!(f, "{found} are more than {most}"),
            BlobProblem::Meaningless(value) => write!(f, "{value:#x} means nothing here"),
            BlobProblem::NotText => f.write_str("not UTF-8"),
            BlobProblem::TrailingBytes => f.write_str("nothing should follow"),
        }
    }
}

impl core::error::Error for BlobError {}

/// The bytes of `config`, valid or not.
pub(super) fn encode(config: &Config) -> Vec<u8> {
    let Config { partitions } = config;
    let mut out = Writer(Vec::new());
    out.list(partitions, |out, partition| {
        let Partition {
            name,
            cpus,
            memory_bytes,
            memory_at,
            kernel,
            modules,
            cmdline,
            console,
            debug_port,
            exit_port,
            test_device,
            user_hypercalls,
            control,
            restart: RestartPolicy { at_most, pause_ms },
            devices,
        } = partition;
        out.text(name);
        out.list(cpus, |out, cpu| out.bytes(&[cpu.0]));
        out.bytes(&memory_bytes.to_le_bytes());
        out.option(memory_at.map(|at| at.raw().to_le_bytes()));
        out.bytes(&kernel.0.to_le_bytes());
        out.list(modules, |out, Module { image, cmdline }| {
            out.bytes(&image.0.to_le_bytes());
            out.text(cmdline);
        });
        out.text(cmdline);
        out.bytes(&[match console {
            Console::Hidden => 0,
            Console::Lines => 1,
            Console::Terminal => 2,
        }]);
        out.option(debug_port.map(u16::to_le_bytes));
        out.option(exit_port.map(u16::to_le_bytes));
        out.flag(*test_device);
        out.flag(*user_hypercalls);
        out.flag(*control);
        out.option(at_most.map(u32::to_le_bytes));
        out.bytes(&pause_ms.to_le_bytes());
        out.list(devices, |out, Device { bdf, gsi, mask, vpin, policy, standby }| {
            out.bytes(&[bdf.bus(), bdf.device(), bdf.function()]);
            out.option(gsi.map(|gsi| gsi.0.to_le_bytes()));
            out.bytes(&[match mask {
                MaskPolicy::Auto => 0,
                MaskPolicy::Line => 1,
                MaskPolicy::Function => 2,
            }]);
            out.option(vpin.map(|pin| [pin.0]));
            out.policy(policy);
            out.flag(standby.is_some());
            if let Some(Standby { partition, vpin }) = standby {
                out.text(partition);
                out.option(vpin.map(|pin| [pin.0]));
            }
        });
    });
    out.0
}

/// The configuration that `bytes` are, valid or not. What it allocates is bounded by the limits of `validate`.
pub(super) fn decode(bytes: &[u8]) -> Result<Config, BlobError> {
    let mut input = Reader { bytes, offset: 0 };
    let partitions = input.list("partition", MAX_PARTITIONS, |input| {
        Ok(Partition {
            name: input.text("name", MAX_NAME_BYTES)?,
            cpus: input.list("cpus", MAX_CPUS, |input| Ok(CpuId(input.u8("cpus")?)))?,
            memory_bytes: input.u64("memory")?,
            memory_at: input.option("memory-at", |input| input.u64("memory-at").map(HostPhys::new))?,
            kernel: ImageIndex(input.u16("kernel")?),
            modules: input.list("modules", MAX_MODULES, |input| {
                Ok(Module {
                    image: ImageIndex(input.u16("modules.file")?),
                    cmdline: input.text("modules.cmdline", MAX_CMDLINE_BYTES)?,
                })
            })?,
            cmdline: input.text("cmdline", MAX_CMDLINE_BYTES)?,
            console: input.choice("console", &[Console::Hidden, Console::Lines, Console::Terminal])?,
            debug_port: input.option("debug-port", |input| input.u16("debug-port"))?,
            exit_port: input.option("exit-port", |input| input.u16("exit-port"))?,
            test_device: input.flag("test-device")?,
            user_hypercalls: input.flag("user-hypercalls")?,
            control: input.flag("control")?,
            restart: RestartPolicy {
                at_most: input.option("restart", |input| input.u32("restart"))?,
                pause_ms: input.u32("restart-pause")?,
            },
            devices: input.list("device", MAX_DEVICES, |input| {
                Ok(Device {
                    bdf: input.bdf("device.bdf")?,
                    gsi: input.option("device.gsi", |input| Ok(Gsi(input.u32("device.gsi")?)))?,
                    mask: input
                        .choice("device.mask", &[MaskPolicy::Auto, MaskPolicy::Line, MaskPolicy::Function])?,
                    vpin: input.option("device.vpin", |input| Ok(Pin(input.u8("device.vpin")?)))?,
                    policy: input.policy()?,
                    standby: input.option("device.standby", |input| {
                        Ok(Standby {
                            partition: input.text("device.standby", MAX_NAME_BYTES)?,
                            vpin: input.option("device.standby-vpin", |input| {
                                Ok(Pin(input.u8("device.standby-vpin")?))
                            })?,
                        })
                    })?,
                })
            })?,
        })
    })?;
    if input.offset != bytes.len() {
        return Err(input.error("end", BlobProblem::TrailingBytes));
    }
    Ok(Config { partitions })
}

struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn count(&mut self, count: usize) {
        self.bytes(&(count as u64).to_le_bytes());
    }

    fn flag(&mut self, flag: bool) {
        self.bytes(&[u8::from(flag)]);
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.bytes(text.as_bytes());
    }

    fn option<const N: usize>(&mut self, value: Option<[u8; N]>) {
        self.flag(value.is_some());
        self.bytes(value.as_ref().map_or(&[], <[u8; N]>::as_slice));
    }

    fn policy(&mut self, DevicePolicy { storm, never_eoi, no_reset }: &DevicePolicy) {
        self.flag(storm.is_some());
        if let Some(StormLimit { limit, window_ms, pause_ms, retries }) = storm {
            for number in [limit, window_ms, pause_ms, retries] {
                self.bytes(&number.to_le_bytes());
            }
        }
        self.flag(never_eoi.is_some());
        if let Some(EoiDeadline { action, after_ms }) = never_eoi {
            self.bytes(&[match action {
                NeverEoi::Hold => 0,
                NeverEoi::Complete => 1,
                NeverEoi::Quarantine => 2,
            }]);
            self.bytes(&after_ms.to_le_bytes());
        }
        self.bytes(&[match no_reset {
            NoReset::Mask => 0,
            NoReset::Refuse => 1,
        }]);
    }

    fn list<T>(&mut self, items: &[T], write: impl Fn(&mut Self, &T)) {
        self.count(items.len());
        for item in items {
            write(self, item);
        }
    }
}

/// Reads forward and never beyond the end. `field` says what an error speaks of.
struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, field: &'static str, problem: BlobProblem) -> BlobError {
        BlobError { offset: self.offset, field, problem }
    }

    fn take(&mut self, field: &'static str, count: usize) -> Result<&'a [u8], BlobError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(self.error(field, BlobProblem::Truncated))?;
        self.offset += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], BlobError> {
        let truncated = self.error(field, BlobProblem::Truncated);
        self.take(field, N)?.try_into().map_err(|_| truncated)
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, BlobError> {
        self.array(field).map(u8::from_le_bytes)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, BlobError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, BlobError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, BlobError> {
        self.array(field).map(u64::from_le_bytes)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, BlobError> {
        let start = self.error(field, BlobProblem::Truncated);
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(BlobError { problem: BlobProblem::Meaningless(other.into()), ..start }),
        }
    }

    fn count(&mut self, field: &'static str, most: usize) -> Result<usize, BlobError> {
        let start = self.error(field, BlobProblem::Truncated);
        let found = self.u64(field)?;
        match usize::try_from(found) {
            Ok(count) if count <= most => Ok(count),
            _ => Err(BlobError { problem: BlobProblem::TooMany { found, most }, ..start }),
        }
    }

    fn text(&mut self, field: &'static str, most: usize) -> Result<String, BlobError> {
        let count = self.count(field, most)?;
        let not_text = self.error(field, BlobProblem::NotText);
        let bytes = self.take(field, count)?;
        core::str::from_utf8(bytes).map(String::from).map_err(|_| not_text)
    }

    fn bdf(&mut self, field: &'static str) -> Result<Bdf, BlobError> {
        let start = self.error(field, BlobProblem::Truncated);
        let [bus, device, function] = self.array(field)?;
        let raw = u32::from_be_bytes([0, bus, device, function]);
        Bdf::new(bus, device, function)
            .ok_or(BlobError { problem: BlobProblem::Meaningless(raw.into()), ..start })
    }

    /// One of `values`, by its number.
    fn choice<T: Copy>(&mut self, field: &'static str, values: &[T]) -> Result<T, BlobError> {
        let start = self.error(field, BlobProblem::Truncated);
        let number = self.u8(field)?;
        let meaningless = BlobError { problem: BlobProblem::Meaningless(number.into()), ..start };
        values.get(usize::from(number)).copied().ok_or(meaningless)
    }

    fn policy(&mut self) -> Result<DevicePolicy, BlobError> {
        let storm = self.option("storm-limit", |input| {
            Ok(StormLimit {
                limit: input.u32("storm-limit")?,
                window_ms: input.u32("storm-window")?,
                pause_ms: input.u32("storm-pause")?,
                retries: input.u32("storm-retries")?,
            })
        })?;
        let never_eoi = self.option("never-eoi", |input| {
            let actions = [NeverEoi::Hold, NeverEoi::Complete, NeverEoi::Quarantine];
            Ok(EoiDeadline {
                action: input.choice("never-eoi", &actions)?,
                after_ms: input.u32("never-eoi-after")?,
            })
        })?;
        let no_reset = self.choice("no-reset", &[NoReset::Mask, NoReset::Refuse])?;
        Ok(DevicePolicy { storm, never_eoi, no_reset })
    }

    fn option<T>(
        &mut self,
        field: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, BlobError>,
    ) -> Result<Option<T>, BlobError> {
        if self.flag(field)? { read(self).map(Some) } else { Ok(None) }
    }

    fn list<T>(
        &mut self,
        field: &'static str,
        most: usize,
        read: impl Fn(&mut Self) -> Result<T, BlobError>,
    ) -> Result<Vec<T>, BlobError> {
        let count = self.count(field, most)?;
        (0..count).map(|_| read(self)).collect()
    }
}
