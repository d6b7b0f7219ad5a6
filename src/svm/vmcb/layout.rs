//! The two areas of the control block, field by field (APM2 Appendix B): what lies where, and nothing else.

/// A segment register as the block stores it (APM2 Appendix B, Table B-2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Descriptor bits 55:52 and 47:40 packed into 12 bits: type, S, DPL, P, AVL, L, D/B, G.
    pub attributes: u16,
    /// Limit in bytes, already scaled.
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

impl Segment {
    const NONE: Self = Self { selector: 0, attributes: 0, limit: 0, base: 0 };
    pub(super) const LONG: u16 = 1 << 9;
    pub(super) const DEFAULT_32: u16 = 1 << 10;

    pub(super) const fn flat(selector: u16, attributes: u16) -> Self {
        Self { selector, attributes, limit: u32::MAX, base: 0 }
    }

    pub(super) const fn real(selector: u16, attributes: u16) -> Self {
        Self { selector, attributes, limit: 0xffff, base: (selector as u64) << 4 }
    }
}

#[derive(Debug)]
#[repr(C)]
pub(super) struct Control {
    pub(super) cr_intercepts: u32,           // 0x000
    pub(super) dr_intercepts: u32,           // 0x004
    pub(super) exception_intercepts: u32,    // 0x008
    pub(super) misc1: u32,                   // 0x00c
    pub(super) misc2: u32,                   // 0x010
    pub(super) misc3: u32,                   // 0x014
    reserved_018: [u64; 4],                  // 0x018
    reserved_038: u32,                       // 0x038
    pub(super) pause_filter: u32,            // 0x03c
    pub(super) iopm_base: u64,               // 0x040
    pub(super) msrpm_base: u64,              // 0x048
    pub(super) tsc_offset: u64,              // 0x050
    pub(super) asid: u32,                    // 0x058
    pub(super) tlb_control: u32,             // 0x05c
    pub(super) int_ctl: u32,                 // 0x060
    pub(super) int_vector: u32,              // 0x064
    pub(super) int_state: u64,               // 0x068
    pub(super) exit_code: u64,               // 0x070
    pub(super) exit_info1: u64,              // 0x078
    pub(super) exit_info2: u64,              // 0x080
    pub(super) exit_int_info: u64,           // 0x088
    pub(super) nested_control: u64,          // 0x090
    reserved_098: [u64; 2],                  // 0x098
    pub(super) event_inject: u64,            // 0x0a8
    pub(super) nested_cr3: u64,              // 0x0b0
    pub(super) lbr_control: u64,             // 0x0b8
    pub(super) clean: u32,                   // 0x0c0
    reserved_0c4: u32,                       // 0x0c4
    pub(super) next_rip: u64,                // 0x0c8
    pub(super) fetched_count: u8,            // 0x0d0
    pub(super) fetched: [u8; 15],            // 0x0d1
    reserved_0e0: [u64; (0x400 - 0xe0) / 8], // 0x0e0
}

#[derive(Debug)]
#[repr(C)]
pub(super) struct Save {
    pub(super) es: Segment,                    // 0x400
    pub(super) cs: Segment,                    // 0x410
    pub(super) ss: Segment,                    // 0x420
    pub(super) ds: Segment,                    // 0x430
    pub(super) fs: Segment,                    // 0x440
    pub(super) gs: Segment,                    // 0x450
    pub(super) gdtr: Segment,                  // 0x460
    pub(super) ldtr: Segment,                  // 0x470
    pub(super) idtr: Segment,                  // 0x480
    pub(super) tr: Segment,                    // 0x490
    reserved_4a0: [u8; 0x2b],                  // 0x4a0
    pub(super) cpl: u8,                        // 0x4cb
    reserved_4cc: u32,                         // 0x4cc
    pub(super) efer: u64,                      // 0x4d0
    reserved_4d8: [u64; 14],                   // 0x4d8
    pub(super) cr4: u64,                       // 0x548
    pub(super) cr3: u64,                       // 0x550
    pub(super) cr0: u64,                       // 0x558
    pub(super) dr7: u64,                       // 0x560
    pub(super) dr6: u64,                       // 0x568
    pub(super) rflags: u64,                    // 0x570
    pub(super) rip: u64,                       // 0x578
    reserved_580: [u64; 11],                   // 0x580
    pub(super) rsp: u64,                       // 0x5d8
    pub(super) shadow_stack: [u64; 3],         // 0x5e0
    pub(super) rax: u64,                       // 0x5f8
    pub(super) star: u64,                      // 0x600
    pub(super) lstar: u64,                     // 0x608
    pub(super) cstar: u64,                     // 0x610
    pub(super) sfmask: u64,                    // 0x618
    pub(super) kernel_gs_base: u64,            // 0x620
    pub(super) sysenter_cs: u64,               // 0x628
    pub(super) sysenter_esp: u64,              // 0x630
    pub(super) sysenter_eip: u64,              // 0x638
    pub(super) cr2: u64,                       // 0x640
    reserved_648: [u64; 4],                    // 0x648
    pub(super) pat: u64,                       // 0x668
    pub(super) debug_control: u64,             // 0x670
    pub(super) branch_records: [u64; 4],       // 0x678
    reserved_698: [u64; (0x1000 - 0x698) / 8], // 0x698
}

impl Save {
    /// Sets every segment a program uses: its code's, and one for all of its data and its stack.
    pub(super) const fn set_segments(&mut self, code: Segment, data: Segment) {
        self.cs = code;
        self.ds = data;
        self.es = data;
        self.ss = data;
        self.fs = data;
        self.gs = data;
    }
}

impl Control {
    pub(super) const ZERO: Self = Self {
        cr_intercepts: 0,
        dr_intercepts: 0,
        exception_intercepts: 0,
        misc1: 0,
        misc2: 0,
        misc3: 0,
        reserved_018: [0; 4],
        reserved_038: 0,
        pause_filter: 0,
        iopm_base: 0,
        msrpm_base: 0,
        tsc_offset: 0,
        asid: 0,
        tlb_control: 0,
        int_ctl: 0,
        int_vector: 0,
        int_state: 0,
        exit_code: 0,
        exit_info1: 0,
        exit_info2: 0,
        exit_int_info: 0,
        nested_control: 0,
        reserved_098: [0; 2],
        event_inject: 0,
        nested_cr3: 0,
        lbr_control: 0,
        clean: 0,
        reserved_0c4: 0,
        next_rip: 0,
        fetched_count: 0,
        fetched: [0; 15],
        reserved_0e0: [0; (0x400 - 0xe0) / 8],
    };
}

impl Save {
    pub(super) const ZERO: Self = Self {
        es: Segment::NONE,
        cs: Segment::NONE,
        ss: Segment::NONE,
        ds: Segment::NONE,
        fs: Segment::NONE,
        gs: Segment::NONE,
        gdtr: Segment::NONE,
        ldtr: Segment::NONE,
        idtr: Segment::NONE,
        tr: Segment::NONE,
        reserved_4a0: [0; 0x2b],
        cpl: 0,
        reserved_4cc: 0,
        efer: 0,
        reserved_4d8: [0; 14],
        cr4: 0,
        cr3: 0,
        cr0: 0,
        dr7: 0,
        dr6: 0,
        rflags: 0,
        rip: 0,
        reserved_580: [0; 11],
        rsp: 0,
        shadow_stack: [0; 3],
        rax: 0,
        star: 0,
        lstar: 0,
        cstar: 0,
        sfmask: 0,
        kernel_gs_base: 0,
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        cr2: 0,
        reserved_648: [0; 4],
        pat: 0,
        debug_control: 0,
        branch_records: [0; 4],
        reserved_698: [0; (0x1000 - 0x698) / 8],
    };
}

const _: () = {
    use core::mem::offset_of;
    // APM2 Appendix B, Table B-1.
    assert!(offset_of!(Control, misc1) == 0x0c);
    assert!(offset_of!(Control, pause_filter) == 0x3c);
    assert!(offset_of!(Control, iopm_base) == 0x40);
    assert!(offset_of!(Control, msrpm_base) == 0x48);
    assert!(offset_of!(Control, tsc_offset) == 0x50);
    assert!(offset_of!(Control, asid) == 0x58);
    assert!(offset_of!(Control, int_ctl) == 0x60);
    assert!(offset_of!(Control, int_vector) == 0x64);
    assert!(offset_of!(Control, int_state) == 0x68);
    assert!(offset_of!(Control, exit_code) == 0x70);
    assert!(offset_of!(Control, exit_int_info) == 0x88);
    assert!(offset_of!(Control, nested_control) == 0x90);
    assert!(offset_of!(Control, event_inject) == 0xa8);
    assert!(offset_of!(Control, nested_cr3) == 0xb0);
    assert!(offset_of!(Control, clean) == 0xc0);
    assert!(offset_of!(Control, next_rip) == 0xc8);
    assert!(offset_of!(Control, fetched_count) == 0xd0);
    // APM2 Appendix B, Table B-2.
    assert!(offset_of!(Save, tr) == 0x90);
    assert!(offset_of!(Save, cpl) == 0xcb);
    assert!(offset_of!(Save, efer) == 0xd0);
    assert!(offset_of!(Save, cr4) == 0x148);
    assert!(offset_of!(Save, cr0) == 0x158);
    assert!(offset_of!(Save, dr7) == 0x160);
    assert!(offset_of!(Save, rflags) == 0x170);
    assert!(offset_of!(Save, rip) == 0x178);
    assert!(offset_of!(Save, rsp) == 0x1d8);
    assert!(offset_of!(Save, rax) == 0x1f8);
    assert!(offset_of!(Save, star) == 0x200);
    assert!(offset_of!(Save, kernel_gs_base) == 0x220);
    assert!(offset_of!(Save, sysenter_eip) == 0x238);
    assert!(offset_of!(Save, cr2) == 0x240);
    assert!(offset_of!(Save, pat) == 0x268);
    assert!(offset_of!(Save, debug_control) == 0x270);
};

/// Every field of the block that VMRUN or VMLOAD reads, for the model of a CPU that caches them.
#[cfg(test)]
pub(super) mod cached {
    use super::{Control, Save, Segment};
    use crate::svm::vmcb::CleanBits;

    /// A field's name, its value, and the clean bit that lets a CPU use an older value (APM2 15.15.3). Where the manual
    /// leaves a field out that lies beside one it names, the greedier reading.
    pub(in crate::svm::vmcb) type Field = (&'static str, [u64; 2], CleanBits);

    const NEVER: CleanBits = CleanBits::empty();

    fn segment(segment: Segment) -> [u64; 2] {
        let Segment { selector, attributes, limit, base } = segment;
        [u64::from(selector) | u64::from(attributes) << 16 | u64::from(limit) << 32, base]
    }

    /// The control area, field by field.
    pub(in crate::svm::vmcb) fn control(control: &Control) -> Vec<Field> {
        // All of them by name: a new field does not compile until it is judged.
        let Control {
            cr_intercepts,
            dr_intercepts,
            exception_intercepts,
            misc1,
            misc2,
            misc3,
            reserved_018: _,
            reserved_038: _,
            pause_filter,
            iopm_base,
            msrpm_base,
            tsc_offset,
            asid,
            tlb_control,
            int_ctl,
            int_vector,
            int_state,
            exit_code: _,
            exit_info1: _,
            exit_info2: _,
            exit_int_info: _,
            nested_control,
            reserved_098: _,
            event_inject,
            nested_cr3,
            lbr_control,
            clean: _,
            reserved_0c4: _,
            next_rip: _,
            fetched_count: _,
            fetched: _,
            reserved_0e0: _,
        } = control;
        let word = |name, value: &u32, bit| (name, [u64::from(*value), 0], bit);
        let long = |name, value: &u64, bit| (name, [*value, 0], bit);
        vec![
            word("cr_intercepts", cr_intercepts, CleanBits::INTERCEPTS),
            word("dr_intercepts", dr_intercepts, CleanBits::INTERCEPTS),
            word("exception_intercepts", exception_intercepts, CleanBits::INTERCEPTS),
            word("misc1", misc1, CleanBits::INTERCEPTS),
            word("misc2", misc2, CleanBits::INTERCEPTS),
            word("misc3", misc3, CleanBits::INTERCEPTS),
            word("pause_filter", pause_filter, CleanBits::INTERCEPTS),
            long("iopm_base", iopm_base, CleanBits::PERMISSION_MAPS),
            long("msrpm_base", msrpm_base, CleanBits::PERMISSION_MAPS),
            long("tsc_offset", tsc_offset, CleanBits::INTERCEPTS),
            word("asid", asid, CleanBits::ASID),
            word("tlb_control", tlb_control, NEVER),
            word("int_ctl", int_ctl, CleanBits::VIRTUAL_INTERRUPT),
            word("int_vector", int_vector, CleanBits::VIRTUAL_INTERRUPT),
            long("int_state", int_state, NEVER),
            long("nested_control", nested_control, CleanBits::NESTED_PAGING),
            long("event_inject", event_inject, NEVER),
            long("nested_cr3", nested_cr3, CleanBits::NESTED_PAGING),
            long("lbr_control", lbr_control, CleanBits::BRANCH_RECORDS),
        ]
    }

    /// The save area, field by field.
    pub(in crate::svm::vmcb) fn save(save: &Save) -> Vec<Field> {
        let Save {
            es,
            cs,
            ss,
            ds,
            fs,
            gs,
            gdtr,
            ldtr,
            idtr,
            tr,
            reserved_4a0: _,
            cpl,
            reserved_4cc: _,
            efer,
            reserved_4d8: _,
            cr4,
            cr3,
            cr0,
            dr7,
            dr6,
            rflags,
            rip,
            reserved_580: _,
            rsp,
            shadow_stack,
            rax,
            star,
            lstar,
            cstar,
            sfmask,
            kernel_gs_base,
            sysenter_cs,
            sysenter_esp,
            sysenter_eip,
            cr2,
            reserved_648: _,
            pat,
            debug_control,
            branch_records,
            reserved_698: _,
        } = save;
        let long = |name, value: &u64, bit| (name, [*value, 0], bit);
        let mut fields = vec![
            ("es", segment(*es), CleanBits::SEGMENTS),
            ("cs", segment(*cs), CleanBits::SEGMENTS),
            ("ss", segment(*ss), CleanBits::SEGMENTS),
            ("ds", segment(*ds), CleanBits::SEGMENTS),
            ("fs", segment(*fs), NEVER),
            ("gs", segment(*gs), NEVER),
            ("gdtr", segment(*gdtr), CleanBits::DESCRIPTOR_TABLES),
            ("ldtr", segment(*ldtr), NEVER),
            ("idtr", segment(*idtr), CleanBits::DESCRIPTOR_TABLES),
            ("tr", segment(*tr), NEVER),
            ("cpl", [u64::from(*cpl), 0], CleanBits::SEGMENTS),
            long("efer", efer, CleanBits::CONTROL_REGISTERS),
            long("cr4", cr4, CleanBits::CONTROL_REGISTERS),
            long("cr3", cr3, CleanBits::CONTROL_REGISTERS),
            long("cr0", cr0, CleanBits::CONTROL_REGISTERS),
            long("dr7", dr7, CleanBits::DEBUG_REGISTERS),
            long("dr6", dr6, CleanBits::DEBUG_REGISTERS),
            long("rflags", rflags, NEVER),
            long("rip", rip, NEVER),
            long("rsp", rsp, NEVER),
            long("rax", rax, NEVER),
            long("star", star, NEVER),
            long("lstar", lstar, NEVER),
            long("cstar", cstar, NEVER),
            long("sfmask", sfmask, NEVER),
            long("kernel_gs_base", kernel_gs_base, NEVER),
            long("sysenter_cs", sysenter_cs, NEVER),
            long("sysenter_esp", sysenter_esp, NEVER),
            long("sysenter_eip", sysenter_eip, NEVER),
            long("cr2", cr2, CleanBits::CR2),
            long("pat", pat, CleanBits::NESTED_PAGING),
            long("debug_control", debug_control, CleanBits::BRANCH_RECORDS),
        ];
        fields.extend(shadow_stack.iter().map(|value| long("shadow_stack", value, NEVER)));
        fields.extend(
            branch_records.iter().map(|value| long("branch_records", value, CleanBits::BRANCH_RECORDS)),
        );
        fields
    }
}
