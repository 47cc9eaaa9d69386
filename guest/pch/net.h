/*
 * What most files of the network stack include, for pch-cc.c. Kbuild's own three come first, in its order.
 * A message of a driver's inline function names the module: no such driver is built.
 */
#if __has_include(<read-as-text.h>)
#include <read-as-text.h>
#endif

#include <linux/compiler-version.h>

#include <linux/kconfig.h>

#include <linux/compiler_types.h>

#define KBUILD_MODNAME "net"

#include <linux/bpf.h>
#include <linux/etherdevice.h>
#include <linux/filter.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/netfilter.h>
#include <linux/netfilter/x_tables.h>
#include <linux/proc_fs.h>
#include <linux/rtnetlink.h>
#include <linux/seq_file.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/ip.h>
#include <net/ipv6.h>
#include <net/netlink.h>
#include <net/route.h>
#include <net/sock.h>
#include <net/tcp.h>

#undef KBUILD_MODNAME
