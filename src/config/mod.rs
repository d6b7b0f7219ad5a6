//! The configuration: what an integrator decides, and its packed form.
