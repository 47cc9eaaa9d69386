/*
 * The features document; see info.h. Kubernetes' part of containerd reads two things of it: recursive read-only
 * mounts (the mount option rro) and user namespaces with id-mapped mounts, which there are none of.
 */
#include "info.h"

#include <stdio.h>
#include <stdlib.h>

#include "oci.h"

#define INFO_HEAD \
	"{\"ociVersionMin\":\"1.0.0\",\"ociVersionMax\":\"1.2.0\"," \
	"\"hooks\":[\"prestart\",\"createRuntime\",\"startContainer\",\"poststart\",\"poststop\"]" \
	",\"mountOptions\":["
#define INFO_TAIL \
	"],\"linux\":{\"namespaces\":[\"cgroup\",\"ipc\",\"mount\",\"network\",\"pid\",\"user\"," \
	"\"uts\"]," \
	"\"cgroup\":{\"v1\":false,\"v2\":true,\"systemd\":false,\"systemdUser\":false}," \
	"\"seccomp\":{\"enabled\":true},\"apparmor\":{\"enabled\":false}," \
	"\"selinux\":{\"enabled\":false},\"mountExtensions\":{\"idmap\":{\"enabled\":false}}}}"

char *info_features_json(void)
{
	char *text = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&text, &len);
	const char *word;

	if (!f)
		abort();
	fputs(INFO_HEAD, f);
	for (size_t i = 0; (word = oci_mount_option_word(i)); i++)
		fprintf(f, "%s\"%s\"", i ? "," : "", word);
	fputs(INFO_TAIL, f);
	fclose(f);
	return text;
}
