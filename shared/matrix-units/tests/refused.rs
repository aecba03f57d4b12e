//! A kernel that refuses the matrix units, whatever the processor has: a process of its own, which cannot take the filter off.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

use matrix_units::MatrixUnits;

/// Lets everything pass but `arch_prctl(ARCH_REQ_XCOMP_PERM, …)`, which fails with EPERM, as old kernels' fails with EINVAL.
fn refuse() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(LOAD, 0, 0, 0), // the call's number
        step(JUMP_IF_EQUAL, 0, 3, libc::SYS_arch_prctl as u32),
        step(LOAD, 0, 0, 16), // the lower half of its first argument
        step(JUMP_IF_EQUAL, 0, 1, 0x1023),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the filter and its steps live through both calls, which copy them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter), 0);
    }
}

#[test]
fn where_the_kernel_refuses_there_are_no_units() {
    refuse();
    assert_eq!(MatrixUnits::get(), None);
    assert_eq!(std::thread::spawn(MatrixUnits::get).join().unwrap(), None);
}
