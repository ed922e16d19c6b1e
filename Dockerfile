# One image for all programs: pcm-agent for workstations, pcm for administrators.
# To pin the base image: --build-arg PYTHON=python:3.13-slim@sha256:DIGEST
ARG PYTHON=python:3.13-slim
FROM ${PYTHON} AS python
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

# The project as a wheel, built with the locked tools.
FROM python AS wheel
WORKDIR /src
RUN python -m venv /opt/build
COPY tests/requirements.lock ./build.lock
RUN /opt/build/bin/python -m pip install --quiet --require-hashes -r build.lock
COPY . .
RUN /opt/build/bin/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels .

# The runtime environment: the locked packages and the project, without pip and build tools.
FROM python AS venv
RUN python -m venv --without-pip /opt/pcm
COPY requirements.lock /
RUN python -m pip --python /opt/pcm/bin/python install --quiet --require-hashes -r /requirements.lock
COPY --from=wheel /wheels /wheels
RUN python -m pip --python /opt/pcm/bin/python install --quiet --no-deps --no-index /wheels/*.whl

FROM ${PYTHON}
LABEL org.opencontainers.image.title="Package Command Manager" \
      org.opencontainers.image.licenses="Apache-2.0"
# One user for the service agent, one for interactive agents. The state directory has the mode of
# /tmp: each agent has a private folder in it. The service agent's user owns it, regardless of
# which agent starts first. A new volume takes over owners and modes.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp pcm \
 && useradd --uid 10002 --user-group --no-create-home --home-dir /tmp pcm-user \
 && install --directory --owner=pcm --group=pcm --mode=1777 /var/lib/pcm /var/lib/pcm/claims \
 && install --directory --owner=pcm --group=pcm --mode=0700 /var/lib/pcm/service \
 && install --directory --owner=pcm --group=pcm --mode=0700 /var/lib/pcm-history \
 && install --directory --owner=pcm --group=pcm --mode=0755 /var/lib/pcm-packages
COPY --from=venv /opt/pcm /opt/pcm
ENV PATH=/opt/pcm/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
# The programs read a .env file from their working directory: use one that is not writable.
WORKDIR /
CMD ["pcm", "--help"]
