//! The configuration: what an integrator decides, and its packed form.
//!
//! A TOML file exists only on the host. There `cargo xtask` turns it into a [`Config`], has [`validate()`] judge
//! it, and [`pack`]s it with the images it names into a *bundle*. The hypervisor finds the bundle as its only
//! boot module, [`unpack`]s it and judges it again with the same code: no text parser in the trusted base, and
//! no surprise at boot.
//!
//! * `model`: the configuration as plain values;
//! * `validate`: the rules, each violation a value;
//! * `blob`: a configuration as bytes;
//! * `bundle`: a blob and images as one checked file.
//!
//! Everything here runs before the first guest does and may allocate.

mod blob;
mod bundle;
mod model;
mod validate;

use alloc::string::ToString;
use alloc::vec::Vec;
use core::fmt;

use crate::message::{Message, Refusal};

pub use blob::{BlobError, BlobProblem};
pub use bundle::{Bundle, BundleError, Image, MAX_IMAGE_NAME_BYTES, MAX_IMAGES, REVISION};
pub use model::{Config, Console, Device, ImageIndex, MaskPolicy, Module, Partition, Standby};
pub use validate::{
    CMOS_PORTS, COM1_PIN, COM1_PORTS, EXIT_PORT_BYTES, KeyPath, MAX_CMDLINE_BYTES, MAX_CPUS, MAX_DEVICES,
    MAX_GSIS, MAX_MEMORY_BYTES, MAX_MEMORY_END, MAX_MODULES, MAX_NAME_BYTES, MAX_PARTITIONS, MAX_VIOLATIONS,
    MIN_MEMORY_AT, MIN_MEMORY_BYTES, PCI_PORTS, PIC_PORTS, POWER_PORTS, RESET_PORT, Rule, Step,
    TEST_FLUSH_PORTS, TEST_LINE_PORTS, TEST_REGISTER_PORTS, TIMER_PORTS, VIRTUAL_PINS, Violation, validate,
};

/// Why a bundle was refused. Whoever packed it must fix it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The file is not a whole, unharmed bundle of this revision.
    Bundle(BundleError),
    /// The bundle is sound, the configuration in it is not one.
    Blob(BlobError),
    /// The configuration breaks these rules: at least one, at most [`MAX_VIOLATIONS`].
    Rules(Vec<Violation>),
}

impl Rejection {
    /// Each thing that is wrong as a record: at least one.
    pub fn refusals(&self) -> Vec<Refusal> {
        match self {
            Self::Bundle(error) => alloc::vec![Refusal::new(error.message(), "bundle", error.to_string())],
            Self::Blob(error) => {
                alloc::vec![Refusal::new(Message::BundleConfig, "bundle: configuration", error.to_string())]
            }
            Self::Rules(violations) => violations.iter().map(Violation::refusal).collect(),
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, refusal) in self.refusals().iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            refusal.fmt(f)?;
        }
        Ok(())
    }
}

impl core::error::Error for Rejection {}

/// Judges `config` and packs it with the images its [`ImageIndex`]es count.
///
/// # Errors
/// Everything [`unpack`] would refuse: broken rules, and image names or counts a bundle cannot hold.
pub fn pack(config: &Config, images: &[Image<'_>]) -> Result<Vec<u8>, Rejection> {
    validate(config, images.len()).map_err(Rejection::Rules)?;
    bundle::write(&blob::encode(config), images).map_err(Rejection::Bundle)
}

/// Checks a bundle as a boot loader handed it over, and returns its configuration and a view of its images.
///
/// `bytes` is exactly the module: nothing before, nothing after. Whatever it holds, this returns; a bundle in
/// which any single bit was changed is refused. It allocates at most twelve times what `bytes` are, and half a MiB.
///
/// # Errors
/// The first layer that does not hold; for broken rules, all of them up to [`MAX_VIOLATIONS`].
pub fn unpack(bytes: &[u8]) -> Result<(Config, Bundle<'_>), Rejection> {
    let bundle = Bundle::parse(bytes).map_err(Rejection::Bundle)?;
    let config = blob::decode(bundle.config()).map_err(Rejection::Blob)?;
    validate(&config, bundle.images().len()).map_err(Rejection::Rules)?;
    Ok((config, bundle))
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
