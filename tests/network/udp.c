/*
 * A UDP server, static, for tests of --net-host.
 *
 *   udp serve PORT                    at all addresses, of both kinds
 *   udp serve PORT local              at 127.0.0.1
 *   udp serve PORT first IP THERE     sends "first" to that port of an IPv4 address until something comes
 *
 * Answers each datagram with itself, to whoever sent it.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static char data[65536];

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static int bind_v4(int port, const char *address)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	inet_pton(AF_INET, address, &a.sin_addr);
	return fd < 0 || bind(fd, (const void *)&a, sizeof(a)) ? -1 : fd;
}

static int bind_all(int port)
{
	struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
	int fd = socket(AF_INET6, SOCK_DGRAM, 0);

	return fd < 0 || bind(fd, (const void *)&a, sizeof(a)) ? -1 : fd;
}

static int begin(int fd, const char *address, int port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct pollfd p = {.fd = fd, .events = POLLIN};

	inet_pton(AF_INET, address, &to.sin_addr);
	do {
		if (sendto(fd, "first", 5, 0, (const void *)&to, sizeof(to)) != 5)
			return -1;
	} while (poll(&p, 1, 200) == 0);
	return 0;
}

int main(int argc, char **argv)
{
	int fd;

	if (argc < 3)
		return 2;
	fd = argc == 3	 ? bind_all(atoi(argv[2]))
	     : argc == 4 ? bind_v4(atoi(argv[2]), "127.0.0.1")
			 : bind_v4(atoi(argv[2]), "0.0.0.0");
	if (fd < 0)
		return fail("bind");
	if (argc == 6 && begin(fd, argv[4], atoi(argv[5])))
		return fail("send");
	for (;;) {
		struct sockaddr_storage peer;
		socklen_t len = sizeof(peer);
		ssize_t n = recvfrom(fd, data, sizeof(data), 0, (void *)&peer, &len);

		if (n >= 0 && sendto(fd, data, n, 0, (const void *)&peer, len) != n)
			perror("answer");
	}
}
