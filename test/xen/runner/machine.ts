// The virtual machine of a lab, as a command line of QEMU: Xen, the kernel and initramfs of dom0, and two disks, which
// are the root file system of dom0 and the payload.
import { join } from "node:path";
import { ARCHITECTURE, type Release } from "./scenario.ts";

export interface MachineSettings {
  readonly release: Release;
  readonly lab: string;
  /** A directory of this machine that dom0 can mount over 9p, as `share`. */
  readonly share: string | undefined;
}

interface Machine {
  readonly program: string;
  readonly args: string[];
}

const MEMORY_MIB = 5120;
const DOM0_MEMORY_MIB = 2560;
const CPUS = 2;

const XEN =
  `dom0_mem=${DOM0_MEMORY_MIB}M,max:${DOM0_MEMORY_MIB}M dom0_max_vcpus=${CPUS} conring_size=1m ` +
  "loglvl=warning guest_loglvl=warning sched=credit";
const DOM0 = "console=hvc0 panic=5 mitigations=off quiet loglevel=4";

/** Runs `settings.lab` with the payload in `image`; the serial console is standard output. */
export function machineOf(settings: MachineSettings, image: string): Machine {
  const { release, lab, share } = settings;
  const { program, options, disk, disks } =
    ARCHITECTURE[release] === "arm64" ? arm64Machine(lab) : x64Machine(lab);
  const drive = "if=none,format=raw,cache=unsafe";
  const common = [
    ["-smp", String(CPUS)],
    ["-m", String(MEMORY_MIB)],
    ["-display", "none"],
    ["-monitor", "none"],
    ["-serial", "stdio"],
    ["-net", "none"],
    ["-kernel", join(lab, "xen")],
    ["-drive", `id=root,file=${join(lab, "base.img")},snapshot=on,${drive}`],
    ["-drive", `id=payload,file=${image},${drive}`],
    ...disks.map((name) => ["-device", `${disk},drive=${name}`]),
  ];
  if (share !== undefined)
    common.push(["-virtfs", `local,path=${share},mount_tag=share,security_model=none`]);
  return { program, args: ["-no-reboot", ...options.flat(), ...common.flat()] };
}

interface Kind {
  readonly program: string;
  readonly options: readonly (readonly string[])[];
  /** The device that a disk of dom0 is, and the order in which they become dom0's vda and vdb. */
  readonly disk: string;
  readonly disks: readonly ["root", "payload"] | readonly ["payload", "root"];
}

/**
 * Xen is QEMU's multiboot kernel, dom0's kernel and initramfs are its modules. Of the processor's features those
 * are left out that QEMU 7.2's TCG gets wrong under Xen: SMAP, SMEP and LA57 break PV guests, RDTSCP breaks HVM
 * guests, and with AVX one process in a hundred dies of a corrupted register.
 */
function x64Machine(lab: string): Kind {
  return {
    program: "qemu-system-x86_64",
    options: [
      ["-machine", "q35"],
      ["-accel", "tcg,thread=multi,tb-size=1024"],
      ["-cpu", "max,-smap,-smep,-la57,-rdtscp,-avx,-avx2,-f16c,-fma,-xsave"],
      ["-append", `console=com1 com1=115200,8n1 spec-ctrl=no xpti=no ${XEN}`],
      ["-initrd", `${join(lab, "vmlinuz")} ${DOM0},${join(lab, "initramfs.gz")}`],
    ],
    disk: "virtio-blk-pci,disable-legacy=on",
    disks: ["root", "payload"],
  };
}

/** QEMU's loader puts dom0's kernel and initramfs into memory, and says in the device tree where they are. */
function arm64Machine(lab: string): Kind {
  const loader = "guest-loader,addr=";
  return {
    program: "qemu-system-aarch64",
    options: [
      ["-machine", "virt,virtualization=on,gic-version=3"],
      ["-accel", "tcg,thread=multi,tb-size=1024"],
      ["-cpu", "cortex-a57"],
      ["-global", "virtio-mmio.force-legacy=false"],
      // Debian's Xen for Arm keeps guests from each other by default.
      ["-append", `console=dtuart xsm=dummy ${XEN}`],
      ["-device", `${loader}0x60000000,kernel=${join(lab, "vmlinuz")},bootargs=${DOM0}`],
      ["-device", `${loader}0x68000000,initrd=${join(lab, "initramfs.gz")}`],
    ],
    disk: "virtio-blk-device",
    // The last one gets the first place on the bus.
    disks: ["payload", "root"],
  };
}
